"""Which release of the product runs."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

PRODUCT = "transfer-orchestrator"


@cache
def release() -> str:
    """Its version; `0` where it runs from files that were never installed."""
    try:
        return version(PRODUCT)
    except PackageNotFoundError:
        return "0"
