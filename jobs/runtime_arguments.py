"""What runs a bundle's weights, for the verbs that answer."""

from __future__ import annotations

import argparse
from typing import get_args

from orchestrator.spec.parts import Runtime

RUNTIME, DEVICE = "auto", "cpu"


def add_runtime_arguments(parser: argparse.ArgumentParser, *, kept: bool = False) -> None:
    """Adds `--runtime` and `--device`.

    Args:
        parser: Of the verb.
        kept: Whether they are None when not given: what runs already may have others.
    """
    parser.add_argument(
        "--runtime",
        choices=get_args(Runtime),
        default=None if kept else RUNTIME,
        help="onnx needs no torch; auto is onnx on the CPU where the bundle has it "
        f"(default: {RUNTIME})",
    )
    parser.add_argument(
        "--device", default=None if kept else DEVICE, help=f"cpu, cuda, … (default: {DEVICE})"
    )
