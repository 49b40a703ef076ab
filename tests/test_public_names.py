"""The public names are exactly these, and each can be had."""

from __future__ import annotations

import subprocess
import sys

import orchestrator

PUBLIC = ["OrchestratorError", "load_spec", "open_bundle", "run_sweep"]


def test_the_public_names_are_exactly_these() -> None:
    assert orchestrator.__all__ == PUBLIC
    assert sorted(orchestrator._HOMES) == PUBLIC


def test_each_public_name_is_what_its_home_defines() -> None:
    code = (
        "import importlib, orchestrator\n"
        "for name in orchestrator.__all__:\n"
        "    found = getattr(orchestrator, name)\n"
        "    home = importlib.import_module(orchestrator._HOMES[name])\n"
        "    assert found is getattr(home, name), name\n"
        "    assert found.__module__ == home.__name__, name\n"
        "    assert found.__doc__, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(orchestrator, "run_sweeps")


def test_reading_a_spec_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from orchestrator import load_spec, OrchestratorError; "
        "print({'torch', 'ray', 'mlflow', 'sklearn', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
