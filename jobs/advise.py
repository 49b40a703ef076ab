"""`orchestrator advise DATA`: inspect data, recommend strategy and backbones."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any, get_args

from jobs.terminal import Terminal
from orchestrator.errors import SpecError, nearest
from orchestrator.spec.backbone_table import backbone_names
from orchestrator.spec.clip_models import is_clip, is_clip_folder, parse_clip
from orchestrator.spec.data import DataSpec
from orchestrator.spec.locations import absolute
from orchestrator.spec.parts import BackboneSpec, Modality, TaskKind, modality_of
from orchestrator.spec.text_encoders import TEXT_ENCODERS, is_encoder_folder

DEFAULT_BACKBONES = ("mobilenetv3_small_100", "tf_efficientnet_lite0", "resnet50")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("data", metavar="DATA", help="as `data.train` takes it")
    parser.add_argument(
        "--task",
        choices=get_args(TaskKind),
        default="image-classification",
        help="(default: %(default)s)",
    )
    parser.add_argument("--test", metavar="DATA", help="a held-out set, checked for leakage")
    parser.add_argument(
        "--backbone",
        metavar="NAME[=WEIGHTS]",
        action="append",
        help="a candidate, with a weights file if need be "
        f"(default: {', '.join(DEFAULT_BACKBONES)}; for texts an id on the hub or a folder, "
        f"default: {TEXT_ENCODERS[0]})",
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all)"
    )


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    modality = modality_of(args.task)
    defaults = DEFAULT_BACKBONES if modality == "image" else TEXT_ENCODERS[:1]
    backbones = [_backbone(text, modality) for text in args.backbone or defaults]
    here = Path.cwd()
    spec = DataSpec(
        train=absolute(args.data, here), test=absolute(args.test, here) if args.test else None
    )
    from orchestrator.data.preparing import prepare_data
    from orchestrator.spec.parts import TaskSpec, TextContract
    from orchestrator.tuning.advising import advise
    from orchestrator.tuning.experiments import input_contract
    from orchestrator.tuning.tokenizing import TextReading, long_texts, tokenize

    with tempfile.TemporaryDirectory(prefix="orchestrator-advise-") as cache:
        prepared = prepare_data(
            spec,
            task=args.task,
            seed=0,
            cache=Path(cache),
            progress=lambda done, total: terminal.count(f"{modality}s checked", done, total),
        )
        tokenize(prepared.examples, backbones, terminal)
        contracts = {b.name: input_contract(b, {}, args.task) for b in backbones}
        long = long_texts(
            prepared.examples,
            [TextReading(n, c) for n, c in contracts.items() if isinstance(c, TextContract)],
        )
        task = TaskSpec(kind=args.task, labels=prepared.examples.labels)
        advice = advise(prepared.examples, task, backbones, threads=args.threads, progress=terminal)
    audit = prepared.audit.with_more(long)
    if not args.json:
        terminal.show(_class_table(audit.classes))
        for line in audit.lines() or ["no faults found"]:
            terminal.show(f"data: {line}")
        if advice.backbones:
            terminal.show(_backbone_table(advice.backbones))
        terminal.show(f"recommended: strategy {advice.strategy} ({advice.row})")
        terminal.show(f"because {advice.reason}; {advice.then}")
    return 0, {"audit": audit.to_json(), "advice": advice.to_json()}


def _backbone(text: str, modality: Modality) -> BackboneSpec:
    if modality == "text":
        folder = Path(text).expanduser().absolute()
        if is_encoder_folder(folder):
            return BackboneSpec(name=folder.name, folder=str(folder))
        return BackboneSpec(name=text)
    name, _, weights = text.partition("=")
    if is_clip(name) or is_clip_folder(Path(name).expanduser()):
        return parse_clip(name, base=Path.cwd(), weights=weights or "default")
    if name not in set(backbone_names()):
        raise SpecError(f"--backbone: no backbone {name!r}.{nearest(name, backbone_names())}")
    if not weights or weights in ("none", "default") or weights.startswith("hub:"):
        return BackboneSpec(name=name, weights=weights or "default")
    path = Path(weights).expanduser().absolute()
    if not path.is_file():
        raise SpecError(f"--backbone: no weights file {weights!r}")
    return BackboneSpec(name=name, weights=str(path))


def _class_table(classes: dict[str, dict[str, int]]) -> Any:
    from rich.table import Table

    splits = ("train", "validation", "test")
    table = Table(title="usable examples")
    table.add_column("class")
    for split in splits:
        table.add_column(split, justify="right")
    for label, counts in classes.items():
        table.add_row(label, *(f"{counts.get(split, 0):,}" for split in splits))
    return table


def _backbone_table(rows: Any) -> Any:
    from rich.table import Table

    table = Table(title="frozen features on a sample, best first")
    table.add_column("backbone")
    for heading in ("LogME", "kNN accuracy", "one-epoch probe", "domain similarity"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.backbone,
            f"{row.log_me:.3f}",
            f"{row.knn_accuracy:.3f}",
            f"{row.probe_accuracy:.3f}",
            f"{row.similarity:.2f}",
        )
    return table
