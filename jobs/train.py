"""`orchestrator train SPEC`: one experiment, the vetted default of the spec's first block."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.spec_arguments import add_address_argument, add_spec_arguments, spec_from
from jobs.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_spec_arguments(parser)
    add_address_argument(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb: a sweep whose search is one point."""
    spec = spec_from(args, terminal)
    from jobs.sweep_result import show_outcome
    from orchestrator.spec.search_space import Constant
    from orchestrator.tuning.sweep import run_sweep

    first = spec.search[0]
    searched = ", ".join(first.searched)
    if len(spec.search) > 1 or searched:
        terminal.say(
            f"train runs one experiment: the vetted default of search[0], {first.strategy}"
            + (f" (searched otherwise: {searched})" if searched else "")
        )
    point = {name: Constant(value=value) for name, value in first.vetted().items()}
    block = first.model_copy(update={"dimensions": point})
    budget = spec.budget.model_copy(update={"trials": 1})
    single = spec.model_copy(update={"search": (block,), "budget": budget})
    outcome = run_sweep(single, address=args.address, progress=terminal)
    return show_outcome(outcome, terminal)
