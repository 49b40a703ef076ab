"""The argument of every verb that looks a model up by name."""

from __future__ import annotations

import argparse
import os

DEFAULT_REGISTRY = "sqlite:///runs/mlflow.db"


def default_registry() -> str:
    """Where models are looked up when no `--registry` says it."""
    return os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_REGISTRY)


def add_registry_argument(parser: argparse.ArgumentParser) -> None:
    """`--registry`."""
    parser.add_argument(
        "--registry",
        metavar="URI",
        default=default_registry(),
        help="MLflow registry (default: $MLFLOW_TRACKING_URI, else %(default)s)",
    )
