"""`orchestrator plan SPEC`: what a sweep will compute and cost, before it is spent."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.spec_arguments import add_address_argument, add_spec_arguments, spec_from
from jobs.terminal import Terminal
from orchestrator.spec.mirror import location_of
from orchestrator.spec.parts import by_position


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_spec_arguments(parser)
    add_address_argument(parser)
    parser.add_argument(
        "--no-probe", action="store_true", help="use stored costs only; measure nothing"
    )


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    spec = spec_from(args, terminal)
    from orchestrator.tuning.planning import plan_sweep

    folder, plan = plan_sweep(
        spec, address=args.address, probe=not args.no_probe, progress=terminal
    )
    terminal.show(_table(plan))
    if by_position(spec.task) and any(b.strategy != "scratch" for b in spec.search):
        terminal.show(
            "heads on tokens are trained one after the other, from stored hidden states: they are "
            "not stacked as heads on whole texts are"
        )
    for row in plan["shared"]:
        kept = (
            f"{row['forward_passes_saved']:,} forward passes saved"
            if row["stored"]
            else f"recomputed: no room for {row['bytes'] / 2**20:.0f} MiB"
        )
        terminal.show(f"shared: {row['what']}, read by {row['trials']:g} trials, {kept}")
    for row in plan["banks"]:
        terminal.show(
            f"bank: {row['heads']:g} {row['head']} heads on {row['backbone']} {row['pooling']} "
            "features train together"
        )
    for row in plan["pretrainings"]:
        each = "unknown" if row["seconds"] is None else f"{row['seconds'] / 60:.1f} minutes"
        said = "is there already" if row["done"] else f"{row['epochs']} epochs, {each}"
        terminal.show(f"first: {row['what']}, {row['rows']:,} rows, {said}")
    terminal.show(_forecast(plan))
    terminal.show(f"plan: {location_of(folder / 'plan.json')}")
    return 0, {"sweep": location_of(folder), **plan}


def _table(plan: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=f"{plan['trials']} trials, {plan['at_once']} at once")
    for heading in ("block", "strategy", "backbones", "trials", "seconds each"):
        table.add_column(heading, justify="left" if heading != "trials" else "right")
    for row in plan["blocks"]:
        each = "unknown" if row["seconds_each"] is None else f"{row['seconds_each']:.1f}"
        backbones = ", ".join(row["backbones"])
        table.add_row(str(row["block"]), row["strategy"], backbones, str(row["trials"]), each)
    return table


def _forecast(plan: dict[str, Any]) -> str:
    forecast = plan["forecast"]
    if forecast is None:
        return "forecast: unknown, since a cost was not measured. Run plan without --no-probe"
    return (
        f"forecast: {forecast['seconds'] / 60:.1f} minutes of wall time, "
        f"{forecast['device_seconds'] / 60:.1f} device minutes of trials, peak "
        f"{forecast['peak_memory_bytes'] / 2**20:.0f} MiB a worker, features "
        f"{forecast['feature_bytes'] / 2**20:.1f} MiB, checkpoints at most "
        f"{forecast['checkpoint_bytes'] / 2**20:.0f} MiB; limited by {forecast['limited_by']}"
    )
