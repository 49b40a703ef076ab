"""Advice before anything is spent: what the data is like, and which strategy and backbone fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.data.examples import Examples
from orchestrator.data.pieces import pieces_of
from orchestrator.errors import WeightsError
from orchestrator.features.filling import (
    Splits,
    compute_features,
    compute_outputs,
    search_rows,
)
from orchestrator.features.store import Float32
from orchestrator.features.transferability import knn_accuracy, log_me
from orchestrator.models.backbone import Backbone
from orchestrator.models.building import build_backbone
from orchestrator.models.head import Standardize, build_head
from orchestrator.models.placing import one_device
from orchestrator.spec.backbones import backbone_modality, facts_of
from orchestrator.spec.parts import BackboneSpec, TaskSpec, by_position
from orchestrator.spec.strategy import FeatureExtraction
from orchestrator.tasks.losses import one_hot
from orchestrator.tasks.task import build_task
from orchestrator.tuning.experiments import input_contract
from orchestrator.tuning.progress import Progress

SAMPLE = 512
MOST_TOKENS = 4_000
SIMILAR, DIFFERENT = 0.6, 0.2


@dataclass(frozen=True)
class BackboneAdvice:
    """How a backbone's frozen features do on a sample of the data."""

    backbone: str
    log_me: float
    knn_accuracy: float
    probe_accuracy: float
    similarity: float


@dataclass(frozen=True)
class Advice:
    """What the facts table says about this much data of this kind, and what was measured."""

    strategy: str
    row: str
    reason: str
    then: str
    backbones: tuple[BackboneAdvice, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def advise(
    examples: Examples,
    task: TaskSpec,
    backbones: Sequence[BackboneSpec],
    *,
    threads: int,
    progress: Progress,
) -> Advice:
    """Measure each backbone on a sample, and name the row of the facts table that fits.

    Args:
        examples: The data.
        task: What is predicted.
        backbones: Candidates; those whose weights cannot be had are left out with a note.
        threads: For forward passes and decoding.
        progress: Told what is measured.
    """
    torch.set_num_threads(threads)
    measured = []
    for spec in backbones:
        try:
            measured.append(_measured(examples, task, spec, threads, progress))
        except WeightsError as err:
            progress.say(f"{spec.name} is left out: {err}")
    measured.sort(key=lambda row: -row.log_me)
    n = len(examples.indices("train")) + len(examples.indices("validation"))
    return _recommended(n, tuple(measured))


def _measured(
    examples: Examples, task: TaskSpec, spec: BackboneSpec, threads: int, progress: Progress
) -> BackboneAdvice:
    rows = _sample(examples)
    progress.say(f"{spec.name}: features of {len(rows)} examples")
    done = 0

    def on_images(n: int) -> None:
        nonlocal done
        done += n
        progress.count(f"{spec.name} features", done, len(rows))

    backbone = build_backbone(spec)
    if by_position(task.kind):
        return _advice(spec.name, *_tokens_of(backbone, examples, task, threads))
    features = compute_features(
        backbone,
        examples,
        rows,
        contract=facts_of(spec).input,
        pooling="mean" if backbone_modality(spec) == "text" else "last",
        device=one_device(use_gpu=True),
        threads=threads,
        on_images=on_images,
    )
    targets = examples.targets()[rows]
    distribution = one_hot(targets, task).double().numpy()
    classes = targets if targets.ndim == 1 else targets.argmax(axis=1)
    return _advice(spec.name, features, classes.astype(np.int64), distribution)


def _advice(
    name: str,
    features: Float32,
    classes: npt.NDArray[np.int64],
    distribution: npt.NDArray[np.float64],
) -> BackboneAdvice:
    """What is measured on features float32 [n, D] of classes [n], or of several each [n, C]."""
    accuracy = knn_accuracy(features, classes)
    chance = float(np.bincount(classes).max() / len(classes))
    return BackboneAdvice(
        backbone=name,
        log_me=log_me(features, distribution),
        knn_accuracy=accuracy,
        probe_accuracy=_probe_accuracy(features, classes, distribution.shape[1]),
        similarity=max(0.0, (accuracy - chance) / max(1e-9, 1 - chance)),
    )


def _tokens_of(
    backbone: Backbone, examples: Examples, task: TaskSpec, threads: int
) -> tuple[Float32, npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """States of a sample's tokens, and their classes: tags, or whether they start the answer.

    Of tokens outside of entities and answers as many are drawn as there are others, so that these
    are not lost among them.
    """
    contract = input_contract(backbone.spec, {}, task.kind)
    pieces = pieces_of(examples, contract)
    rows = _sample(pieces)
    device = one_device(use_gpu=True)
    targets = pieces.targets(rows, build_task(task))
    if task.kind == "question-answering":
        targets = targets[..., 0].astype(np.int64)
    states = []
    for (of_batch,) in compute_outputs(
        backbone,
        examples,
        rows,
        [backbone.n_stages],
        contract=contract,
        device=device,
        threads=threads,
        expected=None,
    ):
        states.append(of_batch[:, : targets.shape[1]])
    some = np.flatnonzero(targets.ravel() > 0)
    none = np.flatnonzero(targets.ravel() == 0)
    rng = np.random.default_rng(0)
    none = rng.permutation(none)[: max(len(some), MOST_TOKENS // 2)]
    chosen = np.sort(rng.permutation(np.concatenate([some, none]))[:MOST_TOKENS])
    classes = targets.ravel()[chosen].astype(np.int64)
    features = np.concatenate(states).reshape(len(targets.ravel()), -1)[chosen]
    n_classes = 2 if task.kind == "question-answering" else len(task.outputs)
    return features.astype(np.float32), classes, np.eye(n_classes)[classes]


def _sample(examples: Splits) -> npt.NDArray[np.int64]:
    """At most SAMPLE search examples. Rows are ordered by content hash, so any stride is random."""
    rows = search_rows(examples)
    return rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64)]


def _probe_accuracy(features: Float32, classes: npt.NDArray[np.int64], n_classes: int) -> float:
    """Held-out accuracy of a linear head after one pass over four fifths of the sample."""
    held = np.arange(len(features)) % 5 == 0
    params = FeatureExtraction(head_lr=1e-2)
    head = build_head(params, n_features=features.shape[1], n_outputs=n_classes, seed=0)
    train, truth = torch.from_numpy(features[~held]), torch.from_numpy(classes[~held])
    assert isinstance(head.standardize, Standardize)
    head.standardize.fit(train)
    optimizer = torch.optim.Adam(head.parameters(), lr=params.head_lr)
    for inputs, targets in zip(train.split(16), truth.split(16), strict=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(inputs), targets).backward()
        optimizer.step()
    with torch.inference_mode():
        predicted = head.eval()(torch.from_numpy(features[held])).argmax(dim=1).numpy()
    return float((predicted == classes[held]).mean())


def _recommended(n: int, backbones: tuple[BackboneAdvice, ...]) -> Advice:
    """The facts table's row: by labelled examples, then by how similar the domain measures."""
    similarity = max((row.similarity for row in backbones), default=None)
    kind = (
        "unmeasured"
        if similarity is None
        else "similar"
        if similarity >= SIMILAR
        else "moderate"
        if similarity >= DIFFERENT
        else "very different"
    )
    told = "" if similarity is None else f" (similarity {similarity:.2f}: {kind})"
    if n < 1000 and kind != "very different":
        return Advice(
            strategy="feature-extraction",
            row="A: fewer than 1,000 labelled examples, similar domain",
            reason=f"{n:,} labelled examples are few for the parameters of a backbone{told}",
            then="add a partial block with unfreeze: [1, 2] once the head is no longer improving",
            backbones=backbones,
        )
    if n < 10_000:
        return Advice(
            strategy="partial",
            row="B: 1,000 to 10,000 labelled examples, moderate similarity",
            reason=f"{n:,} labelled examples carry the last two or three stages{told}",
            then="keep a feature-extraction block beside it: it is cheap and the score to beat",
            backbones=backbones,
        )
    return Advice(
        strategy="full",
        row="C: more than 10,000 labelled examples, different domain",
        reason=f"{n:,} labelled examples can move the whole backbone{told}",
        then="keep a partial block beside it: it often comes close at a fraction of the cost",
        backbones=backbones,
    )
