"""Where a phase's inputs come from: what is stored of frozen stages, or the data itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.data.batches import epoch_batches
from orchestrator.data.examples import Examples
from orchestrator.data.inputs import Prepared, iterate_inputs, training_batches
from orchestrator.data.pieces import pieces_of
from orchestrator.features.network_inputs import network_inputs
from orchestrator.features.store import Values
from orchestrator.models import backbone as models
from orchestrator.models.backbone import Backbone, Prefix
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import TextContract
from orchestrator.spec.strategy import Augment, StrategyParams
from orchestrator.tasks.losses import loss_targets
from orchestrator.tasks.task import build_task
from orchestrator.training.io import TrialIO
from orchestrator.training.mixing import mixed
from orchestrator.training.phases import Phase
from orchestrator.training.workers import Workers

EVALUATION_BATCH = 64

Rows = npt.NDArray[np.int64]


# What a network is given: prepared inputs, features [n, D], or a frozen prefix's outputs.
Inputs = models.Inputs | Prefix


@dataclass(frozen=True)
class Batch:
    """This worker's share of one global batch.

    `targets` are what the task's loss takes, first axis n; `n_global` counts the inputs of all
    workers. A worker without a share holds one input of weight 0.
    """

    inputs: Inputs
    targets: Tensor
    weight: float
    n_global: int


class Source(Protocol):
    """The inputs of one phase on one worker.

    Attributes:
        cut: The stage after which stored activations enter; None where images or features do.
    """

    cut: int | None

    def training(self, epoch: int) -> Iterator[Batch]:
        """One epoch's batches in their seeded order."""

    def validation(self) -> Iterator[list[Inputs]]:
        """This worker's share of the validation examples, in order.

        Each batch is the views of its examples whose logits are to be averaged; images that are
        decoded come once, because the network turns them itself.
        """


class StoredSource:
    """The outputs of a frozen backbone, or of its frozen first stages, read from the store."""

    def __init__(
        self, experiment: Experiment, augment: Augment, io: TrialIO, workers: Workers
    ) -> None:
        self._experiment, self._augment = experiment, augment
        self._io, self._workers = io, workers
        self._truth = _Truth(experiment, io)
        self.cut: int | None = None

    def training(self, epoch: int) -> Iterator[Batch]:
        views = drawn_views(self._experiment.strategy, len(self._truth), epoch)
        batches = self._batches(epoch)
        for rows, weight, n_global in _shares(batches, self._workers):
            yield Batch(
                inputs=self._read(rows, views[rows], self._augment),
                targets=self._truth.of(rows),
                weight=weight,
                n_global=n_global,
            )

    def validation(self) -> Iterator[list[Inputs]]:
        for rows in _validation_batches(self._experiment, self._io, self._workers):
            yield [
                self._read(rows, np.full(len(rows), view), "none")
                for view in range(self._experiment.strategy.predict_views)
            ]

    def _batches(self, epoch: int) -> list[Rows]:
        strategy = self._experiment.strategy
        return epoch_batches(
            self._io.examples.indices("train"),
            batch_size=strategy.batch_size,
            seed=strategy.seed,
            epoch=epoch,
        )

    def _read(self, rows: Rows, views: Rows, augment: Augment) -> Inputs:
        return self._features(rows, views, augment)

    def _features(self, rows: Rows, views: Rows, augment: Augment) -> Tensor:
        """Features of each row in its view: float32 [n, D]."""
        read = partial(self._io.features, augment=augment)
        return torch.from_numpy(read_by_view(read, rows, views)).to(self._io.device)


class PrefixSource(StoredSource):
    """The outputs of the frozen first stages: the later ones run, the images are not decoded."""

    def __init__(
        self,
        experiment: Experiment,
        augment: Augment,
        backbone: Backbone,
        cut: int,
        io: TrialIO,
        workers: Workers,
    ) -> None:
        super().__init__(experiment, augment, io, workers)
        self._backbone, self._at = backbone, cut
        self.cut = cut
        self._n_pooled = backbone.n_pooled(cut, experiment.strategy.pooling)

    def _batches(self, epoch: int) -> list[Rows]:
        return _grouped_batches(self._experiment, self._io, epoch)

    def _read(self, rows: Rows, views: Rows, augment: Augment) -> Inputs:
        def activations(chosen: Rows, view: int) -> Values:
            return self._io.activations(chosen, self._at, view, augment)

        found = read_by_view(activations, rows, views)
        device = self._io.device
        pooled = torch.zeros(len(rows), 0, device=device)
        if self._n_pooled:
            pooled = self._features(rows, views, augment)[:, : self._n_pooled]
        return Prefix(self._backbone.from_stored(found, device), pooled)


class PreparedSource:
    """Images, decoded ahead of the consumer and augmented by (seed, epoch, example), or texts.

    Fixed views are the same that a store would hold.
    """

    def __init__(self, experiment: Experiment, phase: Phase, io: TrialIO, workers: Workers) -> None:
        self._experiment, self._phase, self._io, self._workers = experiment, phase, io, workers
        self._truth = _Truth(experiment, io)
        self.cut: int | None = None

    def training(self, epoch: int) -> Iterator[Batch]:
        batches = _grouped_batches(self._experiment, self._io, epoch)
        shares = list(_shares(batches, self._workers))
        strategy = self._experiment.strategy
        decoded = iterate_inputs(
            self._io.examples,
            [rows for rows, _, _ in shares],
            contract=self._experiment.input,
            view=drawn_views(strategy, len(self._truth), epoch),
            augment=self._phase.augment,
            fresh=(strategy.seed, epoch) if strategy.views == "fresh" else None,
            threads=self._io.threads,
        )
        for step, ((rows, prepared), (_, weight, n_global)) in enumerate(
            zip(decoded, shares, strict=True)
        ):
            inputs, targets = self._inputs(prepared), self._truth.of(rows)
            if isinstance(inputs, Tensor):
                inputs, targets = mixed(
                    inputs, targets, self._phase, seed=strategy.seed, epoch=epoch, step=step
                )
            yield Batch(inputs=inputs, targets=targets, weight=weight, n_global=n_global)

    def validation(self) -> Iterator[list[Inputs]]:
        batches = _validation_batches(self._experiment, self._io, self._workers)
        for views in iterate_judged(
            self._io.examples, batches, self._experiment, threads=self._io.threads
        ):
            yield [self._inputs(view) for view in views]

    def _inputs(self, prepared: Prepared) -> models.Inputs:
        return network_inputs(prepared, self._experiment.input, self._io.device)


def iterate_judged(
    examples: Examples, batches: Sequence[Rows], experiment: Experiment, *, threads: int
) -> Iterator[list[Prepared]]:
    """For each batch the views whose logits are averaged; an image's are left to the network."""
    is_text = isinstance(experiment.input, TextContract)
    n_views = experiment.strategy.predict_views if is_text else 1
    iterators = [
        iterate_inputs(examples, batches, contract=experiment.input, view=view, threads=threads)
        for view in range(n_views)
    ]
    for views in zip(*iterators, strict=True):
        yield [prepared for _, prepared in views]


def build_source(
    experiment: Experiment, phase: Phase, backbone: Backbone, io: TrialIO, workers: Workers
) -> Source:
    """What is stored wherever a phase can start from it, the inputs themselves elsewhere.

    Heads on pooled features read these; heads on positions read the last stage's activations. Rank
    0 decides for all whether activations are stored.
    """
    if phase.from_pooled:
        return StoredSource(experiment, phase.augment, io, workers)
    cut = backbone.deepest_cut(len(phase.stage_lrs)) if phase.same_inputs else None
    if cut is not None and workers.agree(io.stores(cut, phase.augment)):
        return PrefixSource(experiment, phase.augment, backbone, cut, io, workers)
    return PreparedSource(experiment, phase, io, workers)


class _Truth:
    """What is true of the inputs, on the device."""

    def __init__(self, experiment: Experiment, io: TrialIO) -> None:
        self._task, self._device = build_task(experiment.task), io.device
        self._pieces = pieces_of(io.examples, experiment.input)

    def __len__(self) -> int:
        return len(self._pieces)

    def of(self, rows: Rows) -> Tensor:
        """As the task's loss takes it."""
        found = self._pieces.targets(rows, self._task)
        return loss_targets(found, self._task.spec).to(self._device)


def drawn_views(strategy: StrategyParams, n_examples: int, epoch: int) -> Rows:
    """The view of each example that (seed, epoch, example) draws: int64 [n_examples]."""
    rng = np.random.default_rng([strategy.seed, epoch, strategy.n_views])
    return rng.integers(strategy.n_views, size=n_examples)


def read_by_view(read: Callable[[Rows, int], Values], rows: Rows, views: Rows) -> Values:
    """Each row in its own view, gathered from reads of one view each."""
    present = np.unique(views)
    if len(present) == 1:
        return read(rows, int(present[0]))
    parts = {int(view): read(rows[views == view], int(view)) for view in present}
    some = next(iter(parts.values()))
    found = np.empty((len(rows), *some.shape[1:]), some.dtype)
    for view, values in parts.items():
        found[views == view] = values
    return found


def _grouped_batches(experiment: Experiment, io: TrialIO, epoch: int) -> list[Rows]:
    """An epoch's batches of inputs that may differ in length."""
    return training_batches(
        io.examples,
        contract=experiment.input,
        batch_size=experiment.strategy.batch_size,
        seed=experiment.strategy.seed,
        epoch=epoch,
    )


def _shares(batches: Iterable[Rows], workers: Workers) -> Iterator[tuple[Rows, float, int]]:
    """This worker's rows of each global batch, their weight, and the batch's size."""
    for batch in batches:
        rows = batch[workers.share(len(batch))]
        yield (rows, 1.0, len(batch)) if len(rows) else (batch[:1], 0.0, len(batch))


def _validation_batches(experiment: Experiment, io: TrialIO, workers: Workers) -> list[Rows]:
    rows = pieces_of(io.examples, experiment.input).indices("validation")
    mine = rows[workers.share(len(rows))]
    return [mine[i : i + EVALUATION_BATCH] for i in range(0, len(mine), EVALUATION_BATCH)]
