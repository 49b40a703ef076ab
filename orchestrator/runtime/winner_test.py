"""The winner on the test split: read once, by one trial, after the search."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import ray
import torch

from orchestrator.data.pieces import truth_of
from orchestrator.models.placing import one_device
from orchestrator.runtime.folders import SweepFolder, write_predictions
from orchestrator.runtime.process_cache import open_examples, pristine_backbone
from orchestrator.spec import mirror
from orchestrator.spec.record import Record
from orchestrator.tasks.metrics import wilson_interval
from orchestrator.tasks.task import build_task
from orchestrator.training.evaluation import predict_split, trained_network
from orchestrator.training.network import Network


def ensure_tested(
    folder: SweepFolder,
    winner: Record,
    *,
    cpus: float,
    gpus: float,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """`test.json`, made by this winner unless it is there already.

    Args:
        folder: The sweep's.
        winner: The best trial.
        cpus: Of the task that computes it.
        gpus: Of the task that computes it.
        progress: Told what happens.
    """
    found = folder.read("test.json")
    if found is not None and found["trial"] == winner.trial:
        return found
    progress(f"testing the winner {winner.trial} on the held-out test split")
    task = ray.remote(_test).options(num_cpus=cpus, num_gpus=gpus, max_retries=1)
    content: dict[str, Any] = ray.get(
        task.remote(mirror.location_of(folder.root), winner, max(1, int(cpus)), gpus > 0)
    )
    folder.write("test.json", content)
    return content


def winner_network(folder: SweepFolder, record: Record) -> Network:
    """A trial's network at its best epoch, in eval mode.

    Raises:
        IntegrityError: Its checkpoint or the backbone's weights are missing or damaged.
    """
    experiment = record.experiment
    backbone = pristine_backbone(
        experiment.backbone,
        size=experiment.input.size,
        expected_digest=experiment.weights_digest,
        seed=experiment.strategy.seed,
    )
    assert record.checkpoint is not None, f"{record.trial} has no checkpoint"
    checkpoint = folder.trial(record.trial).root / record.checkpoint
    return trained_network(experiment, copy.deepcopy(backbone), checkpoint)


def _test(sweep: str, winner: Record, threads: int, use_gpu: bool) -> dict[str, Any]:
    started_s = time.monotonic()
    torch.set_num_threads(threads)
    folder = SweepFolder(mirror.local_path(sweep))
    examples = open_examples(folder / "data")
    said = predict_split(
        winner_network(folder, winner),
        winner.experiment,
        examples,
        "test",
        device=one_device(use_gpu=use_gpu),
        threads=threads,
    )
    task = build_task(winner.experiment.task)
    truth = truth_of(examples, "test")
    write_predictions(
        folder / "test.arrow", task=task, examples=examples, split="test", said=said, truth=truth
    )
    n, n_correct = len(truth), int(task.correct(said, truth).sum())
    share = wilson_interval(n_correct, n)
    return {
        "trial": winner.trial,
        "n": n,
        "metrics": task.metrics(said, truth),
        "intervals": {} if task.share is None else {task.share: list(share)},
        "details": task.details(said, truth),
        "seconds": time.monotonic() - started_s,
    }
