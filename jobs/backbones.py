"""`orchestrator backbones`: what can be named in a spec."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from jobs.terminal import Terminal
from orchestrator.spec.backbone_table import LISTED, BackboneFacts, backbone_names, facts_for
from orchestrator.spec.parts import TaskKind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--task", choices=get_args(TaskKind), default="image-classification", help="for this task"
    )
    parser.add_argument("--all", action="store_true", help="also every other timm classifier")
    parser.add_argument("--match", metavar="TEXT", help="only names that contain TEXT")


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    everything = args.all or args.match
    names = [
        name
        for name in (backbone_names() if everything else LISTED)
        if not args.match or args.match.lower() in name
    ]
    facts = [facts_for(name) for name in names]
    if not args.json:
        terminal.show(_table(facts))
        if not everything:
            n_more = len(backbone_names()) - len(LISTED)
            terminal.show(f"and {n_more:,} more: --all, or --match vit")
    return 0, [_row(row) for row in facts]


def _row(facts: BackboneFacts) -> dict[str, Any]:
    return {
        "name": facts.name,
        "library": facts.library,
        "stages": facts.n_stages,
        "parameters": facts.n_parameters,
        "feature_width": facts.feature_width,
        "input": facts.input.to_json(),
    }


def _table(facts: list[BackboneFacts]) -> Any:
    from rich.table import Table

    table = Table(title="backbones")
    table.add_column("name", no_wrap=True)
    for heading in ("library", "parameters", "stages", "features", "pixels"):
        table.add_column(heading, justify="left" if heading == "library" else "right")
    for row in facts:
        table.add_row(
            row.name,
            row.library,
            f"{row.n_parameters / 1e6:.1f} M",
            str(row.n_stages),
            str(row.feature_width),
            str(row.input.size),
        )
    return table
