"""`orchestrator promote SWEEP_DIR --name N`: bundle a trial, or a CLIP, verify and register it."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.label_arguments import add_label_arguments, given_labels, named_clip
from jobs.registry_arguments import DEFAULT_REGISTRY, default_registry
from jobs.report import sweep_folder
from jobs.terminal import Terminal
from orchestrator.bundle.reference import CHAMPION, check_alias, check_name
from orchestrator.errors import BundleTakenError, SpecError, nearest
from orchestrator.spec.mirror import fetch_folder, location_of, publish_folder

if TYPE_CHECKING:
    from orchestrator.bundle.bundle import Bundle
    from orchestrator.bundle.manifest import BundleManifest
    from orchestrator.runtime.folders import SweepFolder
    from orchestrator.spec.parts import BackboneSpec
    from orchestrator.spec.record import Record

SAMPLES = 16
BASELINE = 1024  # training examples that drift is measured from
BATCH_SIZE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "sweep_dir",
        metavar="SWEEP_DIR",
        help="the sweep's folder or URI; or a CLIP, which becomes a zero-shot model of --labels",
    )
    parser.add_argument("--trial", metavar="ID", help="which trial; the winner when not given")
    parser.add_argument("--name", required=True, help="the model's name in the registry")
    parser.add_argument("--alias", default=CHAMPION, help="alias to move (default: %(default)s)")
    parser.add_argument(
        "--registry",
        metavar="URI",
        help="MLflow registry; when not given the sweep's own, of a CLIP $MLFLOW_TRACKING_URI or "
        f"{DEFAULT_REGISTRY}",
    )
    add_label_arguments(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    clip = named_clip(args.sweep_dir)
    if clip is not None:
        return _promote_clip(args, terminal, clip)
    if args.labels is not None or args.templates:
        raise SpecError("--labels and --templates are for a CLIP. A sweep's trial has its own")
    root = sweep_folder(args.sweep_dir)
    from orchestrator.runtime.folders import SweepFolder
    from orchestrator.tuning.tracking import tracking_uri

    check_name(args.name)
    check_alias(args.alias)
    folder = SweepFolder(root)
    record = _chosen(folder, args.trial)
    terminal.say(f"bundling trial {record.trial} ({record.experiment.strategy.strategy})")
    bundle = bundle_trial(folder, record)
    uri = args.registry or tracking_uri(folder.spec())
    tags = {"trial": record.trial, "sweep": root.name}
    return 0, {
        **_registered(args, terminal, bundle, uri=uri, tags=tags),
        "trial": record.trial,
        "validation": record.validation,
        "test": (_test_of(folder, record) or {}).get("metrics"),
    }


def _promote_clip(
    args: argparse.Namespace, terminal: Terminal, clip: BackboneSpec
) -> tuple[int, Any]:
    """Bundle a CLIP with its labels, and register it; nothing is trained."""
    labels = given_labels(args)
    if labels is None:
        raise SpecError("--labels: missing. Name the classes: --labels cat,dog, or a file")
    if args.trial is not None:
        raise SpecError("--trial: a CLIP has no trials. Leave it out")
    from orchestrator.bundle.clip_bundles import cached_clip_bundle, default_clips

    check_name(args.name)
    check_alias(args.alias)
    terminal.say(f"bundling {clip.name} with {len(labels.labels)} labels")
    bundle = cached_clip_bundle(default_clips(), clip, labels)
    uri, tags = args.registry or default_registry(), {"clip": clip.name}
    return 0, {
        **_registered(args, terminal, bundle, uri=uri, tags=tags),
        "labels": list(labels.labels),
    }


def _registered(
    args: argparse.Namespace, terminal: Terminal, bundle: Bundle, *, uri: str, tags: dict[str, str]
) -> dict[str, Any]:
    """Register a bundle and move the alias to it; what is told of it as JSON."""
    from orchestrator.bundle.cache import default_cache
    from orchestrator.bundle.mlflow_server import shown_uri
    from orchestrator.bundle.registry import Registry

    terminal.say(f"verified; registering at {shown_uri(uri)}")
    version = Registry(uri, cache=default_cache()).register(
        bundle, name=args.name, alias=args.alias, tags=tags
    )
    terminal.show(f"bundle: {bundle.path}")
    terminal.show(_onnx_line(bundle.manifest))
    terminal.show(f"registered: {args.name} version {version.version}, alias {args.alias}")
    return {
        "bundle": str(bundle.path),
        "digest": bundle.digest,
        "name": args.name,
        "version": version.version,
        "alias": args.alias,
        "registry": shown_uri(uri),
        "onnx": bundle.manifest.onnx and bundle.manifest.onnx.to_json(),
        "without_onnx": bundle.manifest.without_onnx,
    }


def bundle_trial(folder: SweepFolder, record: Record) -> Bundle:
    """The bundle of a trial, below the sweep's folder; made and verified unless it is there.

    One that has been written otherwise (before the test, or by another version of this product)
    stays as it is, and this one lies beside it.
    """
    for number in itertools.count(1):
        name = record.trial if number == 1 else f"{record.trial}-{number}"
        with contextlib.suppress(BundleTakenError):
            return _bundle_at(folder / "bundles" / name, folder, record)
    raise AssertionError("there is always another name")


def _bundle_at(place: Path, folder: SweepFolder, record: Record) -> Bundle:
    """The bundle of a trial at a place.

    Raises:
        BundleTakenError: Another is there.
    """
    from orchestrator.bundle.manifest import MANIFEST
    from orchestrator.bundle.writing import write_bundle
    from orchestrator.data.pieces import pieces_of
    from orchestrator.runtime.process_cache import open_examples
    from orchestrator.runtime.winner_test import winner_network
    from orchestrator.training.sources import iterate_judged

    fetch_folder(place, last=MANIFEST)
    examples = open_examples(folder / "data")
    pieces = pieces_of(examples, record.experiment.input)
    rows = pieces.indices("validation")[:SAMPLES]
    samples = next(iterate_judged(examples, [rows], record.experiment, threads=1))
    cores = os.cpu_count() or 1
    network = winner_network(folder, record)
    bundle = write_bundle(
        place,
        experiment=record.experiment,
        record=record,
        backbone=network.backbone,
        head=network.head,
        test=_test_of(folder, record),
        samples=samples,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        n_examples={
            "train": len(examples.indices("train")),
            "validation": len(examples.indices("validation")),
        },
        training=iterate_judged(
            examples, _spread(pieces.indices("train")), record.experiment, threads=cores
        ),
        cores=cores,
    )
    publish_folder(place, last=MANIFEST)
    return bundle


def _spread(rows: Any) -> list[Any]:
    """Batches of at most BASELINE rows, evenly drawn."""
    step = max(1, -(-len(rows) // BASELINE))
    chosen = rows[::step]
    return [chosen[at : at + BATCH_SIZE] for at in range(0, len(chosen), BATCH_SIZE)]


def _onnx_line(manifest: BundleManifest) -> str:
    if manifest.onnx is None:
        return f"no model.onnx: {manifest.without_onnx}. It answers through torch"
    return (
        f"model.onnx: opset {manifest.onnx.opset}, at most {manifest.onnx.max_difference:.2g} away "
        f"from torch ({manifest.onnx.tolerance:g} allowed)"
    )


def _chosen(folder: SweepFolder, trial: str | None) -> Record:
    from orchestrator.tuning.leaderboard import is_candidate, winner_of

    records = folder.records()
    if trial is None:
        winner = winner_of(records, folder.spec().objective)
        if winner is None:
            raise SpecError(
                f"{location_of(folder.root)} has no trial that ended well. Nothing to promote"
            )
        return winner
    if trial not in records:
        raise SpecError(
            f"--trial: no ended trial {trial!r} in this sweep.{nearest(trial, records)}"
        )
    if not is_candidate(records[trial]):
        raise SpecError(f"--trial: {trial} is {records[trial].status} and has no usable result")
    return records[trial]


def _test_of(folder: SweepFolder, record: Record) -> dict[str, Any] | None:
    """The test result, where this trial is the one that was tested."""
    found = folder.read("test.json")
    if found is None or found["trial"] != record.trial:
        return None
    return {
        "metrics": found["metrics"],
        "n_examples": found["n"],
        "per_class": found["details"]["per_class"],
    }
