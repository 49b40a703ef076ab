"""A spec as plain data, as YAML would give it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.parsing import parse_sweep
from orchestrator.spec.sweep import SweepSpec

Raw = dict[str, Any]


@pytest.fixture
def raw() -> Callable[..., Raw]:
    """A valid spec with other sections laid over it; `search` is one block where not given."""

    def make(**sections: Any) -> Raw:
        block = {"strategy": "feature-extraction", "backbone": "resnet18"}
        return {
            "name": "cells",
            "task": "image-classification",
            "data": {"train": "train"},
            "search": [block],
            **sections,
        }

    return make


@pytest.fixture
def block(raw: Callable[..., Raw]) -> Callable[..., Raw]:
    """A valid spec whose only block has these parameters."""

    def make(strategy: str = "feature-extraction", **parameters: Any) -> Raw:
        return raw(search=[{"strategy": strategy, "backbone": "resnet18", **parameters}])

    return make


@pytest.fixture
def parse(tmp_path: Path) -> Callable[[Any], SweepSpec]:
    """`parse_sweep` relative to a temporary folder."""
    return lambda written: parse_sweep(written, base=tmp_path)


@pytest.fixture
def faults(parse: Callable[[Any], SweepSpec]) -> Callable[[Any], dict[str, str]]:
    """What is wrong with a spec: key → message."""

    def told(written: Any) -> dict[str, str]:
        with pytest.raises(SpecError) as caught:
            parse(written)
        return {fault.key: fault.message for fault in caught.value.faults}

    return told
