"""What runs a bundle's weights, for the verbs that answer."""

from __future__ import annotations

import argparse
from typing import get_args

from orchestrator.spec.parts import Runtime


def add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--runtime` and `--device`."""
    parser.add_argument(
        "--runtime",
        choices=get_args(Runtime),
        default="auto",
        help="onnx needs no torch; auto is onnx on the CPU where the bundle has it "
        "(default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, … (default: %(default)s)")
