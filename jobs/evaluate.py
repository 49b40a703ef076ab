"""`orchestrator evaluate BUNDLE DATA`: metrics of a bundle on a labelled set."""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.label_arguments import (
    add_label_arguments,
    bundle_named,
    given_labels,
    named_clip,
    predictor_of,
)
from jobs.registry_arguments import add_registry_argument
from jobs.runtime_arguments import add_runtime_arguments
from jobs.terminal import Terminal
from orchestrator.errors import DataError
from orchestrator.spec.prompts import LabelSet, with_templates

BATCH_SIZE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        help="a bundle's folder, name or name@alias; or a CLIP, whose labels are the data's unless "
        "--labels says others",
    )
    parser.add_argument("data", metavar="DATA", help="a labelled set, as `data.test` takes it")
    add_label_arguments(parser)
    add_runtime_arguments(parser)
    parser.add_argument("--threads", type=int, default=2, help="decoding threads")
    add_registry_argument(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    import numpy as np

    from orchestrator.bundle.predictor import calibrated_task
    from orchestrator.data.evaluation_set import evaluation_set, labels_in
    from orchestrator.data.pieces import truth_of
    from orchestrator.spec.locations import absolute
    from orchestrator.spec.parts import by_position
    from orchestrator.tasks.metrics import wilson_interval

    location, labels = absolute(args.data, Path.cwd()), given_labels(args)
    with tempfile.TemporaryDirectory(prefix="orchestrator-evaluate-") as cache:
        if labels is None and named_clip(args.bundle) is not None:
            names = labels_in(location, cache=Path(cache) / "names")
            labels = with_templates(LabelSet(labels=names), args.templates)
        bundle = bundle_named(args)
        predictor = predictor_of(args, bundle, labels)
        prepared = evaluation_set(
            location,
            task=predictor.manifest.task,
            cache=Path(cache),
            progress=lambda done, total: terminal.count("examples checked", done, total),
        )
        examples = prepared.examples
        for line in prepared.audit.lines():
            terminal.say(f"data: {line}")
        rows = np.arange(len(examples))
        if not len(rows):
            raise DataError(f"{location}: holds no example. Nothing can be measured on it")
        task, preparer = calibrated_task(predictor.manifest), predictor.preparer
        parts: list[Any] = []
        with ThreadPoolExecutor(args.threads) as pool:
            for chosen in np.array_split(rows, -(-len(rows) // BATCH_SIZE)):
                read = list(pool.map(lambda row: preparer.read_example(examples, int(row)), chosen))
                outputs = predictor.probabilities(preparer.batch(read))
                parts.append(task.packed(preparer.said(read, outputs, task)))
                terminal.count("examples answered", int(chosen[-1]) + 1, len(rows))
        truth = truth_of(examples, "test")
        said = task.unpacked(np.concatenate(parts), truth)
    if not by_position(bundle.task.kind):
        # The data's labels are sorted, the model's need not be.
        spec = predictor.manifest.task
        said = said[:, [spec.labels.index(label) for label in examples.labels]]
        of_data = spec.model_copy(update={"labels": examples.labels})
        task = calibrated_task(predictor.manifest.model_copy(update={"task": of_data}))
    metrics = task.metrics(said, truth)
    n_correct = int(task.correct(said, truth).sum())
    interval = wilson_interval(n_correct, len(rows))
    terminal.show("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    terminal.show(
        f"wholly right: {n_correct:,} of {len(rows):,} "
        f"(95 % interval {interval[0]:.4f}–{interval[1]:.4f})"
    )
    return 0, {
        "bundle": bundle.digest,
        "n": len(rows),
        "metrics": metrics,
        "wholly_right": {"n": n_correct, "interval": list(interval)},
        "per_class": task.details(said, truth)["per_class"],
    }
