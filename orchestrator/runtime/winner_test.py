"""The winner on the test split: read once, by one trial, after the search."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch

from orchestrator.bundle.attribution import asking, erasure
from orchestrator.bundle.preparing import TextPreparer
from orchestrator.data.examples import Examples
from orchestrator.data.inputs import Prepared
from orchestrator.data.pieces import truth_of
from orchestrator.features.network_inputs import network_inputs
from orchestrator.models.classifier import mean_over_views
from orchestrator.models.placing import one_device
from orchestrator.runtime.folders import SweepFolder, write_predictions
from orchestrator.runtime.process_cache import open_examples, pristine_backbone
from orchestrator.spec import mirror
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import TextContract
from orchestrator.spec.record import Record
from orchestrator.spec.text_encoders import encoder_tokenizer
from orchestrator.tasks.metrics import Floats, wilson_interval
from orchestrator.tasks.task import Said, Truth, build_task
from orchestrator.training.evaluation import predict_split, trained_network
from orchestrator.training.network import Network
from orchestrator.training.sources import EVALUATION_BATCH

MOST_EXPLAINED = 8  # wrong answers
MOST_WORDS = 64  # of each that are left out, from its beginning: each costs a forward pass


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
    network, device = winner_network(folder, winner), one_device(use_gpu=use_gpu)
    said = predict_split(
        network, winner.experiment, examples, "test", device=device, threads=threads
    )
    task = build_task(winner.experiment.task)
    truth = truth_of(examples, "test")
    write_predictions(
        folder / "test.arrow",
        task=task,
        examples=examples,
        split="test",
        said=said,
        truth=truth,
        bases=_bases(network, winner.experiment, examples, said, truth, device),
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


def _bases(
    network: Network,
    experiment: Experiment,
    examples: Examples,
    said: Said,
    truth: Truth,
    device: torch.device,
) -> dict[int, list[dict[str, Any]]]:
    """The words that the surest wrong answers on texts of one label rest on, by row."""
    contract = experiment.input
    if experiment.task.kind != "text-classification" or not isinstance(contract, TextContract):
        return {}
    tokenizer = encoder_tokenizer(experiment.backbone)
    preparer = TextPreparer(contract, tokenizer, experiment.strategy.predict_views)
    task = build_task(experiment.task)

    def answer(views: Sequence[Prepared]) -> Floats:
        with torch.inference_mode():
            inputs = [network_inputs(view, contract, device) for view in views]
            logits = mean_over_views([network(view).float() for view in inputs])
        return task.probabilities(logits.cpu().numpy())

    ask = asking(preparer, answer, batch_size=EVALUATION_BATCH)
    probs, labels, rows = np.asarray(said), experiment.task.labels, examples.indices("test")
    predicted = probs.argmax(axis=1)
    wrong = np.flatnonzero(predicted != truth)
    surest = wrong[np.argsort(-probs[wrong, predicted[wrong]], kind="stable")][:MOST_EXPLAINED]
    found = {}
    for position in surest:
        row, label = int(rows[position]), labels[int(predicted[position])]
        text = examples.text(row)
        rests = erasure(ask, preparer, text, labels, label=label, most_words=MOST_WORDS)
        found[row] = rests.to_json()["spans"]
    return found
