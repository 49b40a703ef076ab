"""Transfer learning as one query: from labelled examples to a ranked, registered, usable model.

The public names are loaded when they are first used, so that reading a spec needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.bundle.bundle import open_bundle
    from orchestrator.errors import OrchestratorError
    from orchestrator.spec.parsing import load_spec
    from orchestrator.tuning.sweep import run_sweep

__all__ = ["OrchestratorError", "load_spec", "open_bundle", "run_sweep"]

_HOMES = {
    "OrchestratorError": "orchestrator.errors",
    "load_spec": "orchestrator.spec.parsing",
    "open_bundle": "orchestrator.bundle.bundle",
    "run_sweep": "orchestrator.tuning.sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
