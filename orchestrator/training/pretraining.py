"""A pretraining, start to end: an objective's epochs under Accelerate, with checkpoints.

What is learnt from is the objective's affair (masked_language.py for texts, simsiam.py for images).
The outcome is a function of settings, weights and corpus: every epoch's order, and the random state
of every step, are drawn from the seed and the position alone, so that an interruption changes not
one bit of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from orchestrator.data.batches import Indices, epoch_batches
from orchestrator.errors import DivergedError, IntegrityError
from orchestrator.spec.pretraining import PretrainingParams
from orchestrator.training.acceleration import build_accelerator, distributed
from orchestrator.training.checkpoint import (
    Checkpoint,
    keep_only,
    newest_checkpoint,
    restore_optimizer,
    write_checkpoint,
)
from orchestrator.training.optimization import build_pretraining_schedule
from orchestrator.training.param_groups import ParamGroup, split_by_decay
from orchestrator.training.precision import resolve_precision
from orchestrator.training.workers import Workers

CHECKPOINT_S = 600.0
CHECK_STEPS = 20
_KEPT = 2  # checkpoints: the one before the newest serves where that is damaged

Measures = dict[str, float]
Told = Callable[[str], None]


class Objective(Protocol):
    """What a pretraining learns: a module, its batches, its loss and how it is measured.

    Attributes:
        module: What is trained, on the device of the workers.
        n_rows: Rows of an epoch.
    """

    module: nn.Module
    n_rows: int

    def warm_up(self, told: Told, stopped: Callable[[], bool]) -> dict[str, Any] | None:
        """Bring what is new of the module to where it no longer improves, the rest frozen.

        Args:
            told: Told how that goes.
            stopped: Asked now and then, by all workers at once; whether to leave it.

        Returns:
            How that went, as plain JSON types; None where it was left.
        """

    def warm_up_seconds(self) -> float:
        """What `warm_up` will take, from a few of its steps; nothing is changed that is kept."""

    def measure(self) -> Measures:
        """The module on what is held out; over all workers, the same on each."""

    def optimizer(self, groups: tuple[ParamGroup, ...]) -> Optimizer:
        """The optimiser of its method."""

    def batches(self, batches: Sequence[Indices], epoch: int) -> Iterator[Any]:
        """Rows as an epoch shows them, on the device; read lazily."""

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """The sum of the loss over a batch's units.

        Args:
            module: The trained module, wrapped for the workers.
            batch: From `batches`.
        """

    def n_units(self, rows: Indices) -> int:
        """How many units of the loss some rows have, in every epoch."""

    def save(self, folder: Path) -> None:
        """Write the adapted backbone into an empty folder that a spec can name."""


@dataclass(frozen=True)
class PretrainingEpoch:
    """One pass over the corpus."""

    epoch: int
    train_loss: float
    held_out: Measures
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dict(vars(self))


@dataclass(frozen=True)
class PretrainingResult:
    """How a pretraining went.

    Attributes:
        before: What is held out, measured before the first step.
        after: The same after the last.
        epochs: On the way.
        warm_up: Of what was new, before the first measure.
        seconds: Spent in all runs.
    """

    before: Measures
    after: Measures
    epochs: tuple[PretrainingEpoch, ...]
    warm_up: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**vars(self), "epochs": [row.to_json() for row in self.epochs]}


def run_pretraining(
    objective: Objective,
    params: PretrainingParams,
    *,
    digest: str,
    workers: Workers,
    checkpoints: Path,
    told: Told,
    stopped: Callable[[], bool] = lambda: False,
    checkpoint_s: float = CHECKPOINT_S,
    clock: Callable[[], float] = time.monotonic,
) -> PretrainingResult | None:
    """Train the objective's module in place, from the newest checkpoint where there is one.

    Every worker calls this alike. A checkpoint is written after the warm-up, after each epoch, and
    within an epoch whenever `checkpoint_s` have passed.

    Args:
        objective: What is learnt.
        params: How.
        digest: Of the pretraining, to tell its checkpoints from another's.
        workers: The workers.
        checkpoints: A folder that all workers see; rank 0 writes to it.
        told: Told where it is, on rank 0.
        stopped: Asked after every step of rank 0 whether to end; a checkpoint is written first.
        checkpoint_s: Seconds between checkpoints.
        clock: Seconds that never run back.

    Returns:
        The result, the same on all workers; None when it was stopped.

    Raises:
        DivergedError: On every worker alike, when a loss is no number.
        IntegrityError: The checkpoints are another pretraining's.
    """
    run = _Run(objective, params, digest, workers, checkpoints, told, stopped, checkpoint_s, clock)
    return run.go()


@dataclass(frozen=True)
class _Position:
    """Where a run is: `step` steps of `epoch` are done, their loss summed in `total`."""

    epoch: int = 1
    step: int = 0
    total: float = 0.0
    n_units: int = 0
    before: Measures = field(default_factory=dict)
    rows: tuple[PretrainingEpoch, ...] = ()
    warm_up: dict[str, Any] = field(default_factory=dict)
    epoch_s: float = 0.0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "rows": [row.to_json() for row in self.rows]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> _Position:
        return cls(**{**content, "rows": tuple(PretrainingEpoch(**r) for r in content["rows"])})


class _Run:
    """The state of one running pretraining."""

    def __init__(
        self,
        objective: Objective,
        params: PretrainingParams,
        digest: str,
        workers: Workers,
        root: Path,
        told: Told,
        stopped: Callable[[], bool],
        checkpoint_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.objective, self.params, self.digest = objective, params, digest
        self.workers, self.root = workers, root
        self.told: Told = told if workers.rank == 0 else lambda _: None
        self.stopped, self.checkpoint_s, self.clock = stopped, checkpoint_s, clock
        self.at = _Position()
        self.number = 0  # of checkpoints written
        self.started_s = self.saved_s = clock()

    def go(self) -> PretrainingResult | None:
        checkpoint = newest_checkpoint(self.root)
        if checkpoint is not None:
            self._load(checkpoint)
        else:
            torch.manual_seed(self.params.seed)
            warm_up = self.objective.warm_up(self.told, lambda: self.workers.agree(self.stopped()))
            if warm_up is None:
                return None
            before = self.objective.measure()
            self.told(f"before: {measures_text(before)}")
            self.at = replace(self.at, warm_up=warm_up, before=before)
        self._set_up()
        if checkpoint is not None:
            self._restore(checkpoint)
        else:
            self._save()
        while self.at.epoch <= self.params.epochs:
            if not self._epoch():
                return None
        return PretrainingResult(
            before=self.at.before,
            after=self.at.rows[-1].held_out,
            epochs=self.at.rows,
            warm_up=self.at.warm_up,
            seconds=self._seconds(),
        )

    def _set_up(self) -> None:
        """Accelerate, optimiser and schedule, around the module as it is now."""
        module, device = self.objective.module, self.workers.device
        self.groups = tuple(
            split_by_decay(
                "all", self.params.lr, self.params.weight_decay, module.parameters()
            )
        )  # fmt: skip
        self.optimizer = self.objective.optimizer(self.groups)
        self.n_steps = -(-self.objective.n_rows // self.params.batch_size)
        self.schedule = build_pretraining_schedule(
            self.params, self.optimizer, steps=self.n_steps * self.params.epochs
        )
        precision = resolve_precision(self.params.precision, device)
        self.accelerator = build_accelerator(self.workers, precision)
        self.wrapped = distributed(self.accelerator, module)
        self.stepper = self.accelerator.prepare_optimizer(self.optimizer, device_placement=False)

    def _epoch(self) -> bool:
        """What is left of an epoch; False when stopped within it."""
        epoch, started_s = self.at.epoch, self.clock() - self.at.epoch_s
        batches = epoch_batches(
            np.arange(self.objective.n_rows),
            batch_size=self.params.batch_size,
            seed=self.params.seed,
            epoch=epoch,
        )
        total = torch.tensor([self.at.total], dtype=torch.float64, device=self.workers.device)
        n_units = self.at.n_units
        self.objective.module.train()
        parts = [self._parts(rows) for rows in batches[self.at.step :]]
        prepared = self.objective.batches([part for some in parts for part in some], epoch)
        for step, some in enumerate(parts, start=self.at.step):
            self._seed(epoch, step)
            total += self._step(batches[step], [next(prepared) for _ in some])
            n_units += self.objective.n_units(batches[step])
            if (step + 1) % CHECK_STEPS == 0:
                loss = self._finite(total, n_units, epoch, step)
                self.told(f"epoch {epoch}/{self.params.epochs}, step {step + 1}/{len(batches)}, "
                          f"loss {loss:.3f}")  # fmt: skip
            if step + 1 < len(batches) and not self._goes_on(total, n_units, step + 1, started_s):
                return False
        loss = self._finite(total, n_units, epoch, len(batches))
        self.workers.average_buffers(self.objective.module)  # running statistics are each worker's
        held_out = self.objective.measure()
        row = PretrainingEpoch(epoch, loss, held_out, self.clock() - started_s)
        self.told(f"epoch {epoch}/{self.params.epochs}: loss {loss:.3f}, {measures_text(held_out)}")
        self.at = replace(
            self.at, epoch=epoch + 1, step=0, total=0.0, n_units=0, epoch_s=0.0,
            rows=(*self.at.rows, row),
        )  # fmt: skip
        self._save()
        last = epoch == self.params.epochs
        return last or not self.workers.agree(self.stopped())

    def _goes_on(self, total: Tensor, n_units: int, step: int, started_s: float) -> bool:
        """Write a checkpoint if one is due or the run is to end; whether it goes on."""
        stop = self.stopped()
        due = stop or self.clock() - self.saved_s >= self.checkpoint_s
        if self.workers.agree(due):
            stop = self.workers.agree(stop)
            summed = float(self.workers.total(total.clone()).item())
            self.at = replace(
                self.at, step=step, total=summed / self.workers.world_size, n_units=n_units,
                epoch_s=self.clock() - started_s,
            )  # fmt: skip
            self.workers.average_buffers(self.objective.module)
            self._save()
            return not stop
        return True

    def _step(self, rows: Indices, parts: Sequence[Any]) -> Tensor:
        """One optimiser step of all workers' rows; the summed loss of this worker's parts."""
        weight = 1.0 if self.workers.rank < len(rows) else 0.0  # without a share of its own
        n_units = self.objective.n_units(rows)
        self.optimizer.zero_grad(set_to_none=True)
        summed = torch.zeros(1, dtype=torch.float64, device=self.workers.device)
        for number, batch in enumerate(parts, start=1):
            with self._sync(last=number == len(parts)), self.accelerator.autocast():
                loss = self.objective.loss(self.wrapped, batch) * weight
                # DistributedDataParallel divides by the workers; the batch's mean must not.
                self.accelerator.backward(loss * self.workers.world_size / n_units)
            summed += loss.detach()
        if self.params.clip_norm > 0:
            parameters = [p for group in self.groups for p in group.parameters]
            self.accelerator.clip_grad_norm_(parameters, self.params.clip_norm)
        self.stepper.step()
        self.schedule.step()
        return summed

    def _parts(self, rows: Indices) -> list[Indices]:
        """This worker's share of a batch in `accumulate` parts; a row of no weight for none."""
        mine = rows[self.workers.share(len(rows))]
        mine = mine if len(mine) else rows[:1]
        return np.array_split(mine, min(self.params.accumulate, len(mine)))

    def _sync(self, *, last: bool) -> AbstractContextManager[object]:
        """Gradients are exchanged with the last part only."""
        local = not last and self.workers.world_size > 1
        return self.accelerator.no_sync(self.wrapped) if local else nullcontext()

    def _seed(self, epoch: int, step: int) -> None:
        """The random state of a step: of its position alone, and on each worker another."""
        key = [self.params.seed, epoch, step, self.workers.rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

    def _finite(self, total: Tensor, n_units: int, epoch: int, step: int) -> float:
        mean = float(self.workers.total(total.clone()).item()) / max(1, n_units)
        if not np.isfinite(mean):
            raise DivergedError(
                f"the loss of the pretraining became {mean} by step {step} of epoch {epoch}. "
                f"Lower pretraining.lr ({self.params.lr:g})"
            )
        return mean

    def _save(self) -> None:
        """Write a checkpoint of the position; of earlier ones the newest stays."""
        self.number += 1
        self.at = replace(self.at, seconds=self._seconds())
        if self.workers.rank == 0:
            state = {"pretraining": self.digest, "best_epoch": self.number}
            scaler = self.accelerator.scaler
            write_checkpoint(
                self.root,
                self.number,
                weights=_tensors(self.objective.module),
                optimizer=self.optimizer,
                schedule=self.schedule,
                validation={},
                state={
                    **state,
                    "position": self.at.to_json(),
                    "scaler": {} if scaler is None else scaler.state_dict(),
                },
            )
            keep_only(self.root, set(range(self.number - _KEPT + 1, self.number + 1)))
        self.workers.barrier()
        self.saved_s = self.started_s = self.clock()

    def _load(self, checkpoint: Checkpoint) -> None:
        """The position and the weights of a checkpoint."""
        if checkpoint.state.get("pretraining") != self.digest:
            raise IntegrityError(
                f"{checkpoint.folder} is a checkpoint of another pretraining. Delete it, and this "
                "one starts anew"
            )
        self.number = checkpoint.state["best_epoch"]
        self.at = _Position.from_json(checkpoint.state["position"])
        load_tensors(self.objective.module, checkpoint)
        self.told(f"goes on in epoch {self.at.epoch} after step {self.at.step}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Optimiser, schedule and loss scale as the checkpoint left them."""
        restore_optimizer(checkpoint, self.optimizer, self.schedule)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])

    def _seconds(self) -> float:
        return self.at.seconds + self.clock() - self.started_s


def load_tensors(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors into the module that it is of."""
    missing, unexpected = module.load_state_dict(checkpoint.weights, strict=False)
    assert not unexpected, f"the checkpoint has tensors that the module lacks: {unexpected[:3]}"
    own = _tensors(module).keys()
    assert not own & set(missing), f"the checkpoint lacks {sorted(own & set(missing))[:3]}"


def measures_text(measures: Measures) -> str:
    """Measures of what is held out, in words."""
    return ", ".join(f"held-out {name.replace('_', ' ')} {v:.4g}" for name, v in measures.items())


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Each tensor of a module under one name, though it may have several."""
    persistent = module.state_dict(keep_vars=True)
    once = {id(tensor): name for name, tensor in reversed(persistent.items())}
    return {name: persistent[name].detach() for name in once.values()}
