"""A bank: many heads on the same stored features, trained as one model along a batch axis.

Each head is one feature-extraction Experiment. Rates, weight decay, smoothing, dropout, clipping,
averaging, class weights, epochs, seeds and hidden widths differ from head to head; what must be
alike is in `bank_key`. Every head ends with what it would have had alone (`run_trial`), up to
rounding: its batches, dropped units and initial weights are drawn from its own seed. Hidden layers
are padded to the widest with units whose weights are zero, and whose gradients are: they stay so. A
head that has ended, or diverged, leaves the bank, and the others go on.

Heads that answer for every token are not stacked: a batch of positions is large enough by itself.
A bank of such heads is trials, one after the other, on the same stored hidden states.

Fusing trials along an axis: Wang et al., HFTA (MLSys 2021).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.data.batches import epoch_batches
from orchestrator.models.head import Head, build_head
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.record import EpochRow, PhaseRow
from orchestrator.spec.strategy import Augment, FeatureExtraction, ZeroShot
from orchestrator.tasks.losses import Loss, balanced_class_weights, one_hot
from orchestrator.tasks.task import build_task
from orchestrator.training.bank_optimizer import BankOptimizer
from orchestrator.training.checkpoint import folder_name, write_checkpoint
from orchestrator.training.io import Decision, TrialIO
from orchestrator.training.param_groups import head_groups
from orchestrator.training.phases import Phase, compile_phases
from orchestrator.training.precision import autocast, resolve_precision
from orchestrator.training.sources import drawn_views, read_by_view
from orchestrator.training.trial import TrialResult, fit_standardize, run_trial, run_zero_shot

VALIDATION_ROWS = 1024
CHECK_STEPS = 20
VARIES = {
    "hidden",
    "head_lr",
    "weight_decay",
    "label_smoothing",
    "dropout",
    "feature_dropout",
    "clip_norm",
    "ema_decay",
    "class_weights",
    "loss",
    "focal_gamma",
    "schedule",
    "lr_warm_up",
    "epochs",
    "seed",
}


def can_join(experiment: Experiment) -> bool:
    """Whether an experiment is a head on stored features, so that a bank can train it.

    Zero-shot's head needs no training, and is measured where the others are.
    """
    strategy = experiment.strategy
    if isinstance(strategy, ZeroShot):
        return True
    if not isinstance(strategy, FeatureExtraction):
        return False
    if strategy.accumulate != 1 or strategy.precision == "fp16":
        return False
    return phase_of(experiment).from_features


def bank_key(experiment: Experiment) -> str:
    """Experiments with the same key can train in one bank."""
    content = experiment.to_json()
    content["backbone"] = {"name": experiment.backbone.name}
    content["strategy"] = {k: v for k, v in content["strategy"].items() if k not in VARIES}
    return digest_of(content)


def phase_of(experiment: Experiment) -> Phase:
    """The one phase of a feature-extraction experiment."""
    (phase,) = compile_phases(experiment.strategy, facts_of(experiment.backbone).n_stages)
    return phase


def head_numbers(experiment: Experiment, n_features: int) -> int:
    """How many numbers an experiment's head has."""
    strategy, n_outputs = experiment.strategy, len(experiment.task.outputs)
    if strategy.head != "mlp":
        return (n_features + 1) * n_outputs
    return (n_features + 1) * strategy.hidden + (strategy.hidden + 1) * n_outputs


def run_bank(
    experiments: Sequence[Experiment],
    io: TrialIO,
    *,
    checkpoints: Callable[[Experiment], Path],
    on_epoch: Callable[[int, int, int], None],
    stopped_by: Callable[[], str | None],
) -> list[TrialResult]:
    """Train the heads of some experiments together.

    Args:
        experiments: All with the same `bank_key`.
        io: The surroundings of any one of them; nothing is reported to it.
        checkpoints: The checkpoint folder of each, where its best epoch is written at the end.
        on_epoch: Told the epoch, of how many, and how many heads are still in training.
        stopped_by: Asked after each epoch; a reason ends every head that is left as `stopped`.

    Returns:
        The result of each, in order. The seconds of an epoch are divided among the heads that
        trained in it.
    """
    if isinstance(experiments[0].strategy, ZeroShot):
        return [run_zero_shot(each, io, checkpoints(each)) for each in experiments]
    if experiments[0].strategy.pooling == "none":
        return _one_by_one(experiments, io, checkpoints, on_epoch, stopped_by)
    results = _Bank(experiments, io).run(on_epoch, stopped_by)
    for member in results:
        if member.best is not None:
            member.write_best(checkpoints(member.experiment))
    return [member.result() for member in results]


def _one_by_one(
    experiments: Sequence[Experiment],
    io: TrialIO,
    checkpoints: Callable[[Experiment], Path],
    on_epoch: Callable[[int, int, int], None],
    stopped_by: Callable[[], str | None],
) -> list[TrialResult]:
    results: list[TrialResult] = []
    for number, experiment in enumerate(experiments):
        n_epochs, n_left = experiment.strategy.epochs, len(experiments) - number

        def report(row: EpochRow, n_epochs: int = n_epochs, n_left: int = n_left) -> str | None:
            on_epoch(row.epoch, n_epochs, n_left)
            return stopped_by()

        results.append(run_trial(experiment, _MemberIO(io, checkpoints(experiment), report)))
    return results


class _MemberIO:
    """The bank's surroundings for one of its trials, which reports to the bank."""

    rank, world_size = 0, 1

    def __init__(
        self, io: TrialIO, checkpoints: Path, report: Callable[[EpochRow], str | None]
    ) -> None:
        self.device, self.threads, self.examples = io.device, io.threads, io.examples
        self.checkpoints = checkpoints
        self.backbone, self.parent_head = io.backbone, io.parent_head
        self.features, self.stores, self.activations = io.features, io.stores, io.activations
        self.label_embeddings = io.label_embeddings
        self._report = report

    def on_phase(self, phase: PhaseRow) -> None:
        """A bank tells its own position."""

    def on_step(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> None:
        """A bank tells its own position."""

    def report(self, row: EpochRow, objective_best: float) -> tuple[Decision, str]:
        reason = self._report(row)
        return (Decision.STOP, reason) if reason else (Decision.CONTINUE, "")


@dataclass(eq=False)
class _Member:
    """One head: where it stands, and its best epoch."""

    number: int
    experiment: Experiment
    phase: Phase
    row: PhaseRow
    shapes: dict[str, torch.Size]
    rows: list[EpochRow] = field(default_factory=list)
    best: EpochRow | None = None
    objective: float | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    probs: Tensor | None = None
    status: str = "finished"
    reason: str = ""

    @property
    def seed(self) -> int:
        return self.experiment.strategy.seed

    @property
    def first_dropout(self) -> float:
        """Dropout of what the first layer reads."""
        strategy = self.experiment.strategy
        return strategy.feature_dropout if strategy.head == "mlp" else strategy.dropout

    @property
    def run(self) -> tuple[int, bool]:
        """Members alike in this can share a matrix product: they read the same numbers."""
        return self.seed, self.first_dropout > 0

    def write_best(self, root: Path) -> None:
        """Write the checkpoint of the best epoch."""
        assert self.best is not None
        assert self.probs is not None
        write_checkpoint(
            root,
            self.best.epoch,
            weights=self.weights,
            optimizer=None,
            schedule=None,
            validation={"probs": self.probs},
            state={
                "experiment": self.experiment.digest,
                "phases": [self.row.to_json()],
                "epochs": [row.to_json() for row in self.rows],
                "best_epoch": self.best.epoch,
                "seconds": sum(row.seconds for row in self.rows),
            },
        )

    def result(self) -> TrialResult:
        """The member as a trial's result."""
        rates = [1 / row.images_per_s for row in self.rows if row.images_per_s]
        return TrialResult(
            status=self.status,  # type: ignore[arg-type]
            reason=self.reason,
            phases=(self.row,),
            epochs=tuple(self.rows),
            best_epoch=None if self.best is None else self.best.epoch,
            validation={} if self.best is None else self.best.validation,
            objective=self.objective,
            checkpoint=None if self.best is None else f"checkpoints/{folder_name(self.best.epoch)}",
            seconds=sum(row.seconds for row in self.rows),
            images_per_s=len(rates) / sum(rates) if rates else 0.0,
        )


class _Bank:
    """The state of a bank: the heads that still train, stacked, and where each member stands.

    `live` are the members in training, sorted so that those with the same batches and dropout
    stand together; row i of every stacked tensor is `live[i]`'s.
    """

    def __init__(self, experiments: Sequence[Experiment], io: TrialIO) -> None:
        keys = {bank_key(experiment) for experiment in experiments}
        assert len(keys) == 1, f"{len(keys)} banks in one"
        self.io = io
        self.some = experiments[0]
        self.strategy = self.some.strategy
        self.task = build_task(self.some.task)
        self.targets = io.examples.targets()
        self.train = io.examples.indices("train")
        self.validation = io.examples.indices("validation")
        self.precision = resolve_precision(self.strategy.precision, io.device)
        self.n_outputs = self.task.n_outputs
        n_features = io.features(self.train[:1]).shape[1]
        heads = [
            build_head(
                e.strategy, n_features=n_features, n_outputs=self.n_outputs, seed=e.strategy.seed
            )
            for e in experiments
        ]
        if self.strategy.head == "text":
            for head in heads:
                head.start_from(io.label_embeddings())
        else:
            fit_standardize(heads[0], io)
        self.standardize = heads[0].standardize.to(io.device)
        self.members = [
            _Member(
                number,
                experiment,
                phase_of(experiment),
                _row(experiment, head),
                {name: p.shape for name, p in head.named_parameters()},
            )
            for number, (experiment, head) in enumerate(zip(experiments, heads, strict=True))
        ]
        order = sorted(range(len(heads)), key=lambda i: self.members[i].run)
        self.live = [self.members[i] for i in order]
        self.parameters = {
            name: _stacked([dict(heads[i].named_parameters())[name].detach() for i in order])
            .to(io.device)
            .requires_grad_()
            for name, _ in heads[0].named_parameters()
        }
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.steps_per_epoch = -(-len(self.train) // self.strategy.batch_size)
        self.optimizer = BankOptimizer(
            list(self.parameters.values()),
            [member.phase for member in self.live],
            steps_per_epoch=self.steps_per_epoch,
        )
        self.balanced = balanced_class_weights(self.targets[self.train], self.some.task)
        self._arrange()

    def run(
        self, on_epoch: Callable[[int, int, int], None], stopped_by: Callable[[], str | None]
    ) -> list[_Member]:
        """All epochs of all members."""
        last = max(member.phase.epochs for member in self.members)
        for epoch in range(1, last + 1):
            self._epoch(epoch)
            on_epoch(epoch, last, len(self.live))
            reason = stopped_by()
            for member in self.live:
                if reason and epoch < member.phase.epochs:
                    member.status, member.reason = "stopped", reason
            self._keep([m for m in self.live if not reason and epoch < m.phase.epochs])
            if not self.live:
                break
        return self.members

    def _epoch(self, epoch: int) -> None:
        """Train one epoch of every live head, measure each, and note it."""
        started_s = time.monotonic()
        in_epoch = len(self.live)
        losses = self._train(epoch)
        train_s = time.monotonic() - started_s
        probs = self._validation_probs() if self.live else []
        seconds = (time.monotonic() - started_s) / in_epoch
        for member, of_member in zip(self.live, probs, strict=True):
            row = EpochRow(
                epoch=epoch,
                phase=member.phase.name,
                train_loss=losses[member.number],
                validation=self.task.metrics(
                    of_member.astype(np.float64), self.targets[self.validation]
                ),
                seconds=seconds,
                images_per_s=len(self.train) * in_epoch / max(train_s, 1e-9),
            )
            self._note(member, row, torch.from_numpy(of_member))

    def _note(self, member: _Member, row: EpochRow, probs: Tensor) -> None:
        objective = self.some.objective
        value = row.validation.get(objective.metric, objective.worst)
        member.rows.append(row)
        if objective.better(value, member.objective):
            member.best, member.objective, member.probs = row, value, probs
            i = self.live.index(member)
            weights = {
                f"head.{name}": p[i][_corner(member.shapes[name])]
                for name, p in self._validated().items()
            }
            buffers = self.standardize.state_dict(prefix="head.standardize.")
            member.weights = {k: t.cpu().clone() for k, t in {**weights, **buffers}.items()}

    def _train(self, epoch: int) -> dict[int, float]:
        """One epoch; the mean loss of each head that is still live after it, by its number."""
        self.generators = [
            torch.Generator(self.io.device).manual_seed((m.seed << 20) + epoch) for m in self.live
        ]
        orders = {
            seed: epoch_batches(
                self.train, batch_size=self.strategy.batch_size, seed=seed, epoch=epoch
            )
            for seed in {m.seed for m in self.live}
        }
        views = {
            m.seed: drawn_views(m.experiment.strategy, len(self.targets), epoch) for m in self.live
        }
        total = torch.zeros(len(self.live), dtype=torch.float64, device=self.io.device)
        seen = 0
        for step in range(self.steps_per_epoch):
            inputs, targets = {}, {}
            for seed in {m.seed for m in self.live}:
                rows = orders[seed][step]
                inputs[seed] = self._read(rows, views[seed][rows], self.strategy.augment)
                targets[seed] = one_hot(self.targets[rows], self.some.task).to(self.io.device)
            total += self._step(inputs, targets)
            seen += len(rows)
            if (step + 1) % CHECK_STEPS == 0 or step + 1 == self.steps_per_epoch:
                well = total.isfinite()
                what = f"the training loss became infinite by step {step + 1} of epoch {epoch}"
                total = self._only(well, total, what)
                if not self.live:
                    return {}
        sums = torch.stack([p.detach().flatten(1).sum(1) for p in self.parameters.values()])
        well = sums.isfinite().all(0)
        total = self._only(well, total, f"weights became infinite in epoch {epoch}")
        return {m.number: float(value) / seen for m, value in zip(self.live, total, strict=True)}

    def _step(self, inputs: dict[int, Tensor], targets: dict[int, Tensor]) -> Tensor:
        """One optimiser step of every live head; the summed loss of each, float64 [M]."""
        with autocast(self.precision, self.io.device):
            logits = self._forward(inputs, self.parameters, training=True)
        truth = torch.stack([targets[m.seed] for m in self.live])
        losses = self.loss(logits, truth).sum(1)
        gradients = torch.autograd.grad(
            (losses / truth.shape[1]).sum(), list(self.parameters.values())
        )
        n_steps = self.optimizer.step(gradients)
        if self.averages:
            decay = self.decay.clamp(max=(1 + n_steps) / (10 + n_steps))
            for name, parameter in self.parameters.items():
                weight = (1 - decay).view(-1, *[1] * (parameter.ndim - 1))
                self.average[name].lerp_(parameter.detach(), weight.expand_as(parameter))
        return losses.detach().double()

    def _forward(
        self, inputs: dict[int, Tensor], parameters: dict[str, Tensor], *, training: bool
    ) -> Tensor:
        """Logits of every live head on the batch of its seed: [M, B, C]."""
        names = list(parameters)
        first = [
            self._first_layer(run, inputs, parameters[names[0]], parameters[names[1]], training)
            for run in self.runs
        ]
        if len(names) == 2:
            return torch.cat(first)
        hidden = F.relu(torch.cat(first))
        if training:
            hidden = self._dropped(hidden, range(len(self.live)), after=True)
        weight, bias = parameters[names[2]], parameters[names[3]]
        return torch.baddbmm(bias[:, None], hidden, weight.transpose(1, 2))

    def _first_layer(
        self, run: range, inputs: dict[int, Tensor], weight: Tensor, bias: Tensor, training: bool
    ) -> Tensor:
        """The layer that reads features, of heads that stand together: [m, B, H]."""
        x = inputs[self.live[run.start].seed]
        w, b = weight[run.start : run.stop], bias[run.start : run.stop]
        if training and self.live[run.start].first_dropout > 0:
            dropped = self._dropped(x.expand(len(run), *x.shape), run, after=False)
            return torch.baddbmm(b[:, None], dropped, w.transpose(1, 2))
        product = F.linear(x, w.flatten(0, 1), b.flatten())
        return product.view(len(x), len(run), -1).transpose(0, 1)

    def _dropped(self, x: Tensor, rows: range, *, after: bool) -> Tensor:
        """Dropout [m, B, H] as torch draws it, each head from its own generator."""
        rates = [
            self.live[i].experiment.strategy.dropout if after else self.live[i].first_dropout
            for i in rows
        ]
        if not any(rates):
            return x
        masks = torch.ones(x.shape, device=x.device)
        for mask, i, rate in zip(masks, rows, rates, strict=True):
            if rate > 0:
                width = self.live[i].experiment.strategy.hidden if after else x.shape[-1]
                kept = torch.empty(len(mask), width, device=x.device)
                kept.bernoulli_(1 - rate, generator=self.generators[i])
                mask[:, :width] = kept / (1 - rate)
        return x * masks

    @torch.no_grad()
    def _validation_probs(self) -> list[np.ndarray]:
        """Probabilities of all validation examples from every live head: float32 [N, C] each."""
        parts = []
        seeds = {m.seed for m in self.live}
        for start in range(0, len(self.validation), VALIDATION_ROWS):
            rows = self.validation[start : start + VALIDATION_ROWS]
            views = []
            for view in range(self.strategy.predict_views):
                x = self._read(rows, np.full(len(rows), view), "none")
                with autocast(self.precision, self.io.device):
                    logits = self._forward(
                        dict.fromkeys(seeds, x), self._validated(), training=False
                    )
                views.append(logits.float())
            parts.append(torch.stack(views).mean(0).cpu())
        logits = torch.cat(parts, dim=1)
        well = logits.flatten(1).isfinite().all(1)
        logits = self._only(well, logits, "the validation outputs became infinite")
        return [self.task.probabilities(of_member) for of_member in logits.numpy()]

    def _validated(self) -> dict[str, Tensor]:
        """The parameters that validation and the checkpoint see."""
        if not self.averages:
            return {name: p.detach() for name, p in self.parameters.items()}
        found = {}
        for name, parameter in self.parameters.items():
            averaged = (self.decay > 0).view(-1, *[1] * (parameter.ndim - 1))
            found[name] = torch.where(averaged, self.average[name], parameter.detach())
        return found

    def _read(self, rows: np.ndarray, views: np.ndarray, augment: Augment) -> Tensor:
        read = partial(self.io.features, augment=augment)
        features = torch.from_numpy(read_by_view(read, rows, views))
        standardized: Tensor = self.standardize(features.to(self.io.device))
        return standardized

    def _only(self, well: Tensor, values: Tensor, what: str) -> Tensor:
        """The values [M, …] of the heads that are well; the others have diverged, and leave."""
        flags = well.tolist()
        if all(flags):
            return values
        for member, fine in zip(self.live, flags, strict=True):
            if not fine:
                clipped = member.phase.clip_norm > 0
                advice = "Lower the rates" if clipped else "Lower the rates, or set clip_norm: 1.0"
                member.status, member.reason = "diverged", f"{what} (head). {advice}"
        self._keep([m for m, fine in zip(self.live, flags, strict=True) if fine])
        return values[well]

    def _keep(self, members: list[_Member]) -> None:
        """Go on with some of the live members."""
        if len(members) == len(self.live):
            return
        chosen = {member.number for member in members}
        rows = [i for i, member in enumerate(self.live) if member.number in chosen]
        index = torch.tensor(rows, dtype=torch.long, device=self.io.device)
        self.live = [self.live[i] for i in rows]
        if hasattr(self, "generators"):
            self.generators = [self.generators[i] for i in rows]
        self.parameters = {
            name: p.detach()[index].requires_grad_() for name, p in self.parameters.items()
        }
        self.average = {name: tensor[index] for name, tensor in self.average.items()}
        self.optimizer.keep(index, list(self.parameters.values()))
        if self.live:
            self._arrange()

    def _arrange(self) -> None:
        """What follows from who is live: the loss, and the runs that share a matrix product."""
        device = self.io.device
        self.loss = Loss.stacked(
            [
                Loss(
                    m.experiment.task,
                    m.experiment.strategy,
                    class_weights=(
                        self.balanced.to(device)
                        if m.experiment.strategy.class_weights == "balanced"
                        else None
                    ),
                )
                for m in self.live
            ],
            n_classes=self.n_outputs,
            device=device,
        )
        self.decay = torch.tensor([m.phase.ema_decay for m in self.live], device=device)
        self.averages = bool(self.decay.any())
        keys = [member.run for member in self.live]
        starts = [i for i in range(len(keys)) if i == 0 or keys[i] != keys[i - 1]]
        self.runs = [range(a, b) for a, b in zip(starts, [*starts[1:], len(keys)], strict=True)]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors [M, …] of like dimensions, each with zeros behind it up to the largest size."""
    sizes = [max(size) for size in zip(*(tensor.shape for tensor in tensors), strict=True)]
    stacked = tensors[0].new_zeros(len(tensors), *sizes)
    for row, tensor in zip(stacked, tensors, strict=True):
        row[_corner(tensor.shape)] = tensor
    return stacked


def _corner(shape: torch.Size) -> tuple[slice, ...]:
    """Where a tensor stands in one that is larger."""
    return tuple(slice(size) for size in shape)


def _row(experiment: Experiment, head: Head) -> PhaseRow:
    """The phase as `PhaseRun.row` shows it: the backbone is frozen."""
    phase = phase_of(experiment)
    return PhaseRow(
        name=phase.name,
        epochs=phase.epochs,
        groups=tuple(group.row() for group in head_groups(head, phase)),
        trainable=sum(p.numel() for p in head.parameters()),
        frozen=facts_of(experiment.backbone).n_parameters,
    )
