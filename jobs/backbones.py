"""`orchestrator backbones`: what can be named in a spec."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from jobs.terminal import Terminal
from orchestrator.errors import listing
from orchestrator.spec.backbone_table import LISTED, BackboneFacts, backbone_names
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.clip_models import BEST_FOR as CLIPS
from orchestrator.spec.clip_models import clip_references
from orchestrator.spec.parts import BackboneSpec, TaskKind, modality_of
from orchestrator.spec.text_encoders import BEST_FOR, FAMILIES

ZERO_SHOT: TaskKind = "zero-shot-image-classification"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--task", choices=get_args(TaskKind), default="image-classification", help="for this task"
    )
    parser.add_argument("--all", action="store_true", help="every image backbone and CLIP")
    parser.add_argument("--match", metavar="TEXT", help="only names that contain TEXT")


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    if modality_of(args.task) == "text":
        return _encoders(args, terminal)
    everything = args.all or args.match
    clips = clip_references() if everything else tuple(CLIPS)
    plain = backbone_names() if everything else LISTED
    facts = [
        facts_of(BackboneSpec(name=name))
        for name in (clips if args.task == ZERO_SHOT else (*plain, *clips))
        if not args.match or args.match.lower() in name.lower()
    ]
    if not args.json:
        terminal.show(_table(facts))
        if not everything:
            n_more = len(backbone_names()) + len(clip_references()) - len(LISTED) - len(CLIPS)
            terminal.show(f"and {n_more:,} more: --all, or --match vit")
    return 0, [_row(row) for row in facts]


def _encoders(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Text encoders are named by their id on the hub, or by a folder; these are a choice."""
    from rich.table import Table

    wanted = (args.match or "").lower()
    rows = [(name, best) for name, best in BEST_FOR.items() if wanted in name.lower()]
    if not args.json:
        table = Table("on the Hugging Face hub", "best for", title="text encoders")
        for row in rows:
            table.add_row(*row)
        terminal.show(table)
        terminal.show(f"or any encoder, on the hub or in a local folder, of {listing(FAMILIES)}")
    return 0, [{"name": name, "best_for": best} for name, best in rows]


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
