"""A Phase at work on one worker: optimiser, schedule, training epochs, validation outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from orchestrator.data.pieces import pieces_of
from orchestrator.errors import DivergedError
from orchestrator.models.backbone import batch_norms
from orchestrator.models.classifier import flat, flat_width, mean_over_views
from orchestrator.models.freezing import assert_frozen
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.record import PhaseRow
from orchestrator.tasks.losses import Loss
from orchestrator.training.acceleration import build_accelerator, distributed
from orchestrator.training.averaging import WeightAverage
from orchestrator.training.checkpoint import Checkpoint, restore_optimizer
from orchestrator.training.io import TrialIO
from orchestrator.training.network import Network
from orchestrator.training.optimization import build_optimizer, build_schedule
from orchestrator.training.param_groups import param_groups
from orchestrator.training.phases import Phase
from orchestrator.training.precision import resolve_precision
from orchestrator.training.sources import Batch, Inputs, build_source
from orchestrator.training.workers import Workers

CHECK_STEPS = 20


class PhaseRun:
    """One phase of one trial on this worker."""

    def __init__(
        self,
        experiment: Experiment,
        phase: Phase,
        network: Network,
        loss: Loss,
        io: TrialIO,
        workers: Workers,
    ) -> None:
        self.phase = phase
        self.loss = loss
        self._experiment, self._network, self._io, self._workers = experiment, network, io, workers
        network.enter(phase)
        self.groups = param_groups(network, phase)
        self.optimizer = build_optimizer(phase, self.groups)
        n_train = len(pieces_of(io.examples, experiment.input).indices("train"))
        self._steps_per_epoch = -(-n_train // experiment.strategy.batch_size)
        self.schedule = build_schedule(phase, self.optimizer, steps_per_epoch=self._steps_per_epoch)
        self._source = build_source(experiment, phase, network.backbone, io, workers)
        self._module = network.module_for(phase, self._source.cut)
        # Pooling every stage bypasses the layers that some backbones have behind the last one.
        bypasses = experiment.strategy.pooling == "multi-scale" and not phase.from_features
        precision = resolve_precision(experiment.strategy.precision, io.device)
        self._accelerator = build_accelerator(workers, precision, some_unused=bypasses)
        self._wrapped = distributed(self._accelerator, self._module)
        self._stepper = self._accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        trained = [p for group in self.groups for p in group.parameters]
        self._moved = torch.tensor(True)
        self._average = WeightAverage(trained, phase.ema_decay) if phase.ema_decay else None

    def row(self) -> PhaseRow:
        """The phase as a Record shows it."""
        trainable, frozen = self._network.counts()
        return PhaseRow(
            name=self.phase.name,
            epochs=self.phase.epochs,
            groups=tuple(group.row() for group in self.groups),
            trainable=trainable,
            frozen=frozen,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put optimiser, schedule and loss scale back to where the checkpoint left them."""
        restore_optimizer(checkpoint, self.optimizer, self.schedule)
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        if self._average is not None:
            self._average.restore(checkpoint.last)

    def scaler_state(self) -> dict[str, Any]:
        """The loss scale, where fp16 needs one."""
        scaler = self._accelerator.scaler
        return {} if scaler is None else scaler.state_dict()

    def averaged(self) -> AbstractContextManager[None]:
        """Meanwhile the network's weights are their averages, where the phase keeps any."""
        return nullcontext() if self._average is None else self._average.applied()

    def last_weights(self) -> dict[str, Tensor]:
        """The last step's weights, where the phase keeps averages."""
        return {} if self._average is None else self._average.last()

    def finish(self) -> None:
        """The phase is over: the next one starts from its averages."""
        if self._average is not None:
            self._average.apply()

    def train(self, epoch: int, n_epochs: int) -> tuple[float, int]:
        """One epoch of training.

        Args:
            epoch: Counted from 1 over all phases.
            n_epochs: Of the whole trial.

        Returns:
            Mean loss and number of examples, over all workers.

        Raises:
            DivergedError: On every worker alike, when the loss or a weight is no number.
        """
        # Each worker drops other units; rank 0 draws what a single worker does.
        torch.manual_seed((self._io.rank << 52) + (self._experiment.strategy.seed << 20) + epoch)
        self._network.train()
        total = torch.zeros(1, device=self._io.device, dtype=torch.float64)
        self._moved = torch.tensor(self.phase.clip_norm == 0, device=self._io.device)
        seen = 0
        for step, batch in enumerate(self._source.training(epoch), start=1):
            total += self._step(batch)
            seen += batch.n_global
            if step % CHECK_STEPS == 0:
                self._finite_mean(total, seen, epoch, step)
            if self._io.rank == 0:
                self._io.on_step(step, self._steps_per_epoch, epoch, n_epochs)
        assert_frozen(self._network.backbone)
        for norm in batch_norms(self._network.backbone):
            if norm.training:
                self._workers.average_buffers(norm)
        mean = self._finite_mean(total, seen, epoch, self._steps_per_epoch)
        self._check_weights(epoch)
        return mean, seen

    def validation_logits(self) -> Tensor:
        """Outputs for this worker's share of the validation inputs, flat: float32 [n, …]."""
        self._network.eval()
        width = flat_width(self._experiment)
        parts = [torch.empty((0, width), device=self._io.device)]
        with self.averaged(), torch.inference_mode(), self._accelerator.autocast():
            for views in self._source.validation():
                logits = mean_over_views([self._module(inputs).float() for inputs in views])
                parts.append(flat(logits, width))
        return torch.cat(parts)

    def _step(self, batch: Batch) -> Tensor:
        """One optimiser step; the summed loss of this worker's examples."""
        self.optimizer.zero_grad(set_to_none=True)
        summed = torch.zeros(1, device=self._io.device, dtype=torch.float64)
        for inputs, targets, sync in self._parts(batch):
            with sync, self._accelerator.autocast():
                loss = self.loss(self._outputs(inputs), targets).sum() * batch.weight
                # DistributedDataParallel divides by the workers; the batch's mean must not.
                scaled = loss * self._workers.world_size / batch.n_global
                self._accelerator.backward(scaled)
            summed += loss.detach()
        if self.phase.clip_norm > 0:
            parameters = [p for group in self.groups for p in group.parameters]
            norm = self._accelerator.clip_grad_norm_(parameters, self.phase.clip_norm)
            self._moved |= norm.isfinite()  # an infinite norm clips every gradient to zero
        self._stepper.step()
        self.schedule.step()
        if self._average is not None:
            self._average.update(self.schedule.last_epoch)
        return summed

    def _outputs(self, inputs: Inputs) -> Tensor:
        """Outputs for training; a lone example has no statistics, so the running ones serve it."""
        norms = [norm for norm in batch_norms(self._network.backbone) if norm.training]
        lone = norms if len(inputs) == 1 else []
        for norm in lone:
            norm.eval()
        outputs: Tensor = self._wrapped(inputs)
        for norm in lone:
            norm.train()
        return outputs

    def _parts(
        self, batch: Batch
    ) -> Iterator[tuple[Inputs, Tensor, AbstractContextManager[object]]]:
        """The batch in `accumulate` parts; gradients are exchanged with the last one only."""
        n_parts = min(self._experiment.strategy.accumulate, len(batch.inputs))
        inputs: tuple[Inputs, ...] = batch.inputs.tensor_split(n_parts)
        targets = batch.targets.tensor_split(n_parts)
        for number, pair in enumerate(zip(inputs, targets, strict=True), start=1):
            local = number < n_parts and self._workers.world_size > 1
            yield *pair, (self._accelerator.no_sync(self._wrapped) if local else nullcontext())

    def _check_weights(self, epoch: int) -> None:
        """Outputs can be finite though weights are not: the head clamps what it reads."""
        if not bool(self._moved):
            raise DivergedError(
                f"the gradients had an infinite norm in every step of epoch {epoch} "
                f"({self.phase.name}), so nothing was learnt. {self._advice()}"
            )
        weights = [p for group in self.groups for p in group.parameters]
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise DivergedError(
                f"weights became infinite in epoch {epoch} ({self.phase.name}). {self._advice()}"
            )

    def _finite_mean(self, total: Tensor, seen: int, epoch: int, step: int) -> float:
        mean = float(self._workers.total(total.clone()).item()) / max(1, seen)
        if not torch.isfinite(torch.tensor(mean)):
            raise DivergedError(
                f"the training loss became {mean} by step {step} of epoch {epoch} "
                f"({self.phase.name}). {self._advice()}"
            )
        return mean

    def _advice(self) -> str:
        clipped = self.phase.clip_norm > 0
        return "Lower the rates" if clipped else "Lower the rates, or set clip_norm: 1.0"
