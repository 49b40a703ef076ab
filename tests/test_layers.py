"""Imports point one way; read from the source, so that those inside functions count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parents[1]

# Left to right: a package may import itself and every package in a group before its own.
ARROWS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("spec",),
    ("tasks",),
    ("models",),
    ("data",),
    ("features",),
    ("training", "bundle"),
    ("runtime",),
    ("tuning",),
    ("report",),
)
RAY_ALLOWED = {"runtime", "tuning"}
SERVE_SEES = {"errors", "spec", "tasks", "models", "data", "bundle"}
OUTSIDE = ("jobs", "serve", "cluster")
# What verbs may reach of serve: the application that `deploy` starts, where it listens, and the
# client by which the demo asks it as a user would. None shows how a request is answered.
REACHED_BY_JOBS = {"addresses", "app", "client"}

# Only the libraries that the whole product needs; `orchestrator/spec` is read without them.
HEAVY = {"torch", "torchvision", "timm", "ray", "mlflow", "sklearn", "pandas", "datasets", "optuna"}
NO_HEAVY = {"errors", "spec"}


@dataclass(frozen=True)
class Import:
    """One imported name, dotted, and how it was imported."""

    name: str
    form: Literal["import", "from", "relative"]


def imports(source: str, module: str) -> Iterator[Import]:
    """Every import of `source`, wherever the statement stands.

    Args:
        source: Python text.
        module: Its own dotted name, which relative imports start from.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "import") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            home = [*above, *([node.module] if node.module else [])]
            form: Literal["from", "relative"] = "relative" if node.level else "from"
            yield from (Import(".".join([*home, alias.name]), form) for alias in node.names)


def violations(source: str, module: str) -> list[str]:
    """What the arrows forbid in the source of `module`, one line each."""
    top, package = [*module.split("."), ""][:2]
    return [
        f"{module} imports {found.name}: {reason}"
        for found in imports(source, module)
        if (reason := _forbidden(top, package, found))
    ]


def _forbidden(top: str, package: str, found: Import) -> str:
    """Why `top.package` may not import this, or nothing when it may."""
    library, inner = [*found.name.split("."), ""][:2]
    if library == "serve" and found.form == "import":
        return "it rebinds Ray's name"
    if library in OUTSIDE and library != top:
        reached = (top, library) == ("jobs", "serve") and inner in REACHED_BY_JOBS
        return "" if reached else f"nothing imports {library}"
    if library == "serve" and found.form != "relative":
        return "inside, imports of ours are relative"
    if library == "ray" and top == "orchestrator" and package not in RAY_ALLOWED:
        return "ray stays in runtime, tuning, jobs, serve and cluster"
    if top == "orchestrator" and package in NO_HEAVY and library in HEAVY:
        return f"{package} is read before {library} is"
    if library != "orchestrator" or not inner:
        return ""
    if top == "serve" and inner not in SERVE_SEES:
        return "serve answers with bundles alone"
    if top == "orchestrator" and inner not in _seen_by(package):
        return "the arrows point left"
    return ""


def _seen_by(package: str) -> set[str]:
    seen = {package}
    for group in ARROWS:
        if package in group:
            return seen
        seen |= set(group)
    raise AssertionError(f"orchestrator.{package} has no place among the arrows")


def sources() -> list[tuple[Path, str]]:
    """Every Python file of the product, and its dotted name; a package's own is `….__init__`."""
    return [
        (path, ".".join(path.relative_to(ROOT).with_suffix("").parts))
        for top in ("orchestrator", *OUTSIDE)
        for path in sorted((ROOT / top).rglob("*.py"))
    ]


def test_every_import_follows_the_arrows() -> None:
    found = [
        line
        for path, module in sources()
        if module != "orchestrator.__init__"  # its lazy names are the only look to the right
        for line in violations(path.read_text(encoding="utf-8"), module)
    ]

    assert not found, "\n".join(found)


def test_every_package_has_its_place_among_the_arrows() -> None:
    packages = {
        path.stem
        for path in (ROOT / "orchestrator").iterdir()
        if not path.name.startswith("_")
        and (path.suffix == ".py" or (path / "__init__.py").exists())
    }

    assert packages == {name for group in ARROWS for name in group}


def test_the_public_names_are_imported_lazily() -> None:
    text = (ROOT / "orchestrator" / "__init__.py").read_text(encoding="utf-8")
    now = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = [found.name for node in now for found in imports(ast.unparse(node), "orchestrator.x")]

    assert found == [
        "__future__.annotations",
        "importlib",
        "typing.TYPE_CHECKING",
        "typing.Any",
    ]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("orchestrator.spec.x", "import torch"),
        ("orchestrator.spec.x", "def f():\n    import torch.nn as nn"),
        ("orchestrator.spec.x", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("orchestrator.spec.x", "from orchestrator.tasks import task"),
        ("orchestrator.spec.x", "from orchestrator import tasks"),
        ("orchestrator.spec.x", "from ..tasks.task import Task"),
        ("orchestrator.spec.x", "from .. import tasks"),
        ("orchestrator.spec.__init__", "from ..models import head"),
        ("orchestrator.models.x", "from orchestrator.data.examples import Examples"),
        ("orchestrator.training.x", "import orchestrator.bundle.bundle"),
        ("orchestrator.bundle.x", "from orchestrator.training.trial import run_trial"),
        ("orchestrator.training.x", "try:\n    import ray\nexcept ImportError:\n    ray = None"),
        ("orchestrator.report.x", "from ray import tune"),
        ("orchestrator.tuning.x", "from orchestrator.report.page import write_report"),
        ("orchestrator.report.x", "from jobs.cli import main"),
        ("orchestrator.runtime.x", "import serve"),
        ("orchestrator.runtime.x", "import cluster.up"),
        ("jobs.deploy", "import serve"),
        ("jobs.deploy", "import serve.app"),
        ("jobs.deploy", "from cluster import up"),
        ("jobs.deploy", "from serve.replica import Replica"),
        ("serve.app", "import serve.app"),
        ("serve.app", "from serve.replica import Replica"),
        ("orchestrator.bundle.x", "from serve.app import build"),
        ("serve.app", "from orchestrator.tuning.sweep import run_sweep"),
        ("orchestrator.errors", "from orchestrator.spec.frozen import Frozen"),
    ],
)  # fmt: skip
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("orchestrator.data.x", "from orchestrator.models.backbone import Backbone"),
        ("orchestrator.tuning.x", "import ray\nfrom orchestrator.training import trial"),
        ("orchestrator.spec.x", "from .frozen import Frozen\nimport yaml"),
        ("orchestrator.bundle.x", "import torch\nfrom orchestrator.errors import BundleError"),
        ("jobs.deploy", "from serve.app import build\nimport ray"),
        ("jobs.demo", "from serve.client import Client"),
        ("serve.app", "from ray import serve\nfrom .replica import Replica"),
        ("serve.app", "from orchestrator.bundle.bundle import open_bundle"),
    ],
)
def test_what_the_arrows_allow_is_no_violation(module: str, source: str) -> None:
    assert violations(source, module) == []
