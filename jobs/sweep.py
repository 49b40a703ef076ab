"""`orchestrator sweep SPEC`: run a search, or continue it."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.spec_arguments import add_address_argument, add_spec_arguments, spec_from
from jobs.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_spec_arguments(parser)
    add_address_argument(parser)
    parser.add_argument(
        "--fresh", action="store_true", help="start another sweep instead of continuing"
    )


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    spec = spec_from(args, terminal)
    from jobs.sweep_result import show_outcome
    from orchestrator.tuning.sweep import run_sweep

    outcome = run_sweep(spec, address=args.address, fresh=args.fresh, progress=terminal)
    return show_outcome(outcome, terminal)
