"""P6: our training loop against a bare PyTorch loop with the same loader, model and precision."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F

from orchestrator.data.batches import epoch_batches, iterate_pixels
from orchestrator.data.examples import Examples
from orchestrator.data.transforms import normalized
from orchestrator.features.store import FeatureStore
from orchestrator.models.classifier import Classifier, build_classifier_head
from orchestrator.models.placing import placed
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.strategy import Scratch
from orchestrator.tasks.losses import Loss
from orchestrator.training.network import Network
from orchestrator.training.phase_run import PhaseRun
from orchestrator.training.phases import compile_phases
from orchestrator.training.trial import build_network
from orchestrator.training.workers import Workers
from tests.benchmarks.harness import Measured, paired
from tests.benchmarks.material import write_photos
from tests.orchestrator.training.small_trials import (
    CONTRACT,
    CPU,
    MakeIO,
    MemoryIO,
    experiment_of,
    initial_backbone,
)

SIDE, N_IMAGES, THREADS = 128, 512, 2


def p6(folder: Path) -> Measured:
    """Images a second of our loop over those of the bare one, an epoch each in turn."""
    torch.set_num_threads(THREADS)
    examples = write_photos(folder / "data", n=N_IMAGES, side=160)
    strategy = Scratch(epochs=100, batch_size=32, augment="light", label_smoothing=0.0)
    experiment = experiment_of(strategy, examples).model_copy(
        update={"input": CONTRACT.model_copy(update={"size": SIDE})}
    )
    io = MakeIO(examples, FeatureStore(folder / "features"), folder / "trials")(experiment)
    io.threads = THREADS
    ours, bare = OurLoop(experiment, io), BareLoop(experiment, examples)
    ratio, a, b = paired(ours.epoch, bare.epoch, pairs=5)
    return Measured(
        id="P6",
        what="our loop against a bare loop, images/s",
        value=1 / ratio,
        goal="≥ 0.95",
        beside={
            "seconds_of_ours": a,
            "seconds_of_the_bare_loop": b,
            "loss_of_ours": ours.loss,
            "loss_of_the_bare_loop": bare.loss,
        },
    )


class OurLoop:
    """A phase of a trial, epoch by epoch."""

    def __init__(self, experiment: Experiment, io: MemoryIO) -> None:
        (phase,) = compile_phases(experiment.strategy, io.used.n_stages)
        network: Network = build_network(experiment, io)
        loss = Loss(experiment.task, experiment.strategy, class_weights=None)
        workers = Workers(rank=0, world_size=1, device=CPU)
        self._run = PhaseRun(experiment, phase, network, loss, io, workers)
        self._epoch = 0
        self.loss = float("nan")

    def epoch(self) -> None:
        self._epoch += 1
        self.loss, _ = self._run.train(self._epoch, 100)


class BareLoop:
    """What anybody writes: the same batches through the same model, and nothing else."""

    def __init__(self, experiment: Experiment, examples: Examples) -> None:
        strategy = experiment.strategy
        backbone = copy.deepcopy(initial_backbone(experiment.backbone.name))
        head = build_classifier_head(backbone, strategy, n_outputs=len(experiment.task.labels))
        self._model = placed(Classifier(backbone, head, strategy), CPU)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-3)
        self._experiment, self._examples = experiment, examples
        self._epoch = 0
        self.loss = float("nan")

    def epoch(self) -> None:
        self._epoch += 1
        self._model.train()
        rows = self._examples.indices("train")
        targets = torch.from_numpy(self._examples.targets()).long()
        batches = epoch_batches(rows, batch_size=32, seed=0, epoch=self._epoch)
        total = 0.0
        for batch, pixels in iterate_pixels(
            self._examples,
            batches,
            contract=self._experiment.input,
            augment="light",
            seed=0,
            epoch=self._epoch,
            threads=THREADS,
        ):
            images = torch.from_numpy(normalized(pixels, self._experiment.input))
            images = images.to(memory_format=torch.channels_last)
            self._optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(self._model(images), targets[torch.from_numpy(batch)])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
            total += float(loss.detach()) * len(batch)
        self.loss = total / len(rows)
