"""The argument of every verb that looks a model up by name."""

from __future__ import annotations

import argparse
import os

DEFAULT_REGISTRY = "sqlite:///runs/mlflow.db"


def default_registry() -> str:
    """Where models are looked up when no `--registry` says it."""
    return os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_REGISTRY)


def add_registry_argument(parser: argparse.ArgumentParser, *, kept: str = "") -> None:
    """`--registry`.

    Args:
        parser: Of the verb.
        kept: What it is when not given, where that is more than the default; it is None then.
    """
    default = default_registry()
    parser.add_argument(
        "--registry",
        metavar="URI",
        default=None if kept else default,
        help=f"MLflow registry (default: {kept}$MLFLOW_TRACKING_URI, else {DEFAULT_REGISTRY})",
    )
