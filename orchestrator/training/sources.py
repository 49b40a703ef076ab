"""Where a phase's inputs come from: stored features, or images decoded and transformed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.data.batches import epoch_batches, iterate_pixels
from orchestrator.data.transforms import normalized
from orchestrator.spec.experiment import Experiment
from orchestrator.tasks.losses import one_hot
from orchestrator.training.io import TrialIO
from orchestrator.training.mixing import mixed
from orchestrator.training.phases import Phase
from orchestrator.training.workers import Workers

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Batch:
    """This worker's share of one global batch.

    `inputs` are features [n, D] or images [n, 3, S, S]; `targets` float32 [n, C]; `n_global`
    counts the examples of all workers. A worker without a share holds one example of weight 0.
    """

    inputs: Tensor
    targets: Tensor
    weight: float
    n_global: int


class Source(Protocol):
    """The inputs of one phase on one worker."""

    def training(self, epoch: int) -> Iterator[Batch]:
        """One epoch's batches in their seeded order."""

    def validation(self) -> Iterator[Tensor]:
        """This worker's share of the validation inputs, in order."""


class FeatureSource:
    """Stored features: the backbone does not run."""

    def __init__(self, experiment: Experiment, io: TrialIO, workers: Workers) -> None:
        self._experiment, self._io, self._workers = experiment, io, workers
        self._targets = io.examples.targets()
        self._width = io.features(io.examples.indices("train")[:1]).shape[1]

    def training(self, epoch: int) -> Iterator[Batch]:
        for rows, weight, n_global in _shares(self._experiment, self._io, self._workers, epoch):
            yield Batch(
                inputs=self._views(rows, epoch),
                targets=one_hot(self._targets[rows], self._experiment.task).to(self._io.device),
                weight=weight,
                n_global=n_global,
            )

    def validation(self) -> Iterator[Tensor]:
        for rows in _validation_batches(self._io, self._workers):
            yield self._features(rows)

    def _views(self, rows: npt.NDArray[np.int64], epoch: int) -> Tensor:
        """Each example in the view that (seed, epoch, example) draws for it."""
        strategy = self._experiment.strategy
        if strategy.views == 1:
            return self._features(rows)
        rng = np.random.default_rng([strategy.seed, epoch, strategy.views])
        drawn = rng.integers(strategy.views, size=len(self._targets))[rows]
        inputs = np.empty((len(rows), self._width), np.float32)
        for view in np.unique(drawn):
            inputs[drawn == view] = self._io.features(rows[drawn == view], int(view))
        return torch.from_numpy(inputs).to(self._io.device)

    def _features(self, rows: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._io.features(rows)).to(self._io.device)


class ImageSource:
    """Images, decoded ahead of the consumer and augmented by (seed, epoch, example)."""

    def __init__(self, experiment: Experiment, phase: Phase, io: TrialIO, workers: Workers) -> None:
        self._experiment, self._phase, self._io, self._workers = experiment, phase, io, workers
        self._targets = io.examples.targets()

    def training(self, epoch: int) -> Iterator[Batch]:
        shares = list(_shares(self._experiment, self._io, self._workers, epoch))
        seed = self._experiment.strategy.seed
        batches = iterate_pixels(
            self._io.examples,
            [rows for rows, _, _ in shares],
            contract=self._experiment.input,
            augment=self._phase.augment,
            seed=seed,
            epoch=epoch,
            threads=self._io.threads,
        )
        for step, ((rows, pixels), (_, weight, n_global)) in enumerate(
            zip(batches, shares, strict=True)
        ):
            targets = one_hot(self._targets[rows], self._experiment.task).to(self._io.device)
            inputs, targets = mixed(
                self._images(pixels), targets, self._phase, seed=seed, epoch=epoch, step=step
            )
            yield Batch(inputs=inputs, targets=targets, weight=weight, n_global=n_global)

    def validation(self) -> Iterator[Tensor]:
        batches = iterate_pixels(
            self._io.examples,
            _validation_batches(self._io, self._workers),
            contract=self._experiment.input,
            augment="none",
            seed=0,
            epoch=0,
            threads=self._io.threads,
        )
        for _, pixels in batches:
            yield self._images(pixels)

    def _images(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(normalized(pixels, self._experiment.input))
        if self._io.device.type == "cuda":
            images = images.pin_memory()
        return images.to(self._io.device, memory_format=torch.channels_last, non_blocking=True)


def build_source(experiment: Experiment, phase: Phase, io: TrialIO, workers: Workers) -> Source:
    """Features where the phase lets them be read, images elsewhere."""
    if phase.from_features:
        return FeatureSource(experiment, io, workers)
    return ImageSource(experiment, phase, io, workers)


def _shares(
    experiment: Experiment, io: TrialIO, workers: Workers, epoch: int
) -> Iterator[tuple[npt.NDArray[np.int64], float, int]]:
    """This worker's rows of each global batch, their weight, and the batch's size."""
    strategy = experiment.strategy
    for batch in epoch_batches(
        io.examples.indices("train"),
        batch_size=strategy.batch_size,
        seed=strategy.seed,
        epoch=epoch,
    ):
        rows = batch[workers.share(len(batch))]
        yield (rows, 1.0, len(batch)) if len(rows) else (batch[:1], 0.0, len(batch))


def _validation_batches(io: TrialIO, workers: Workers) -> list[npt.NDArray[np.int64]]:
    rows = io.examples.indices("validation")
    mine = rows[workers.share(len(rows))]
    return [mine[i : i + EVALUATION_BATCH] for i in range(0, len(mine), EVALUATION_BATCH)]
