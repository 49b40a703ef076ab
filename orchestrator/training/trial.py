"""A trial, start to end: one Experiment becomes epochs, checkpoints and a result."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.pieces import Pieces, labelled_tokens, pieces_of, truth_of, words_each
from orchestrator.errors import DivergedError, IntegrityError
from orchestrator.features.network_inputs import network_inputs
from orchestrator.features.store import batched
from orchestrator.models.backbone import Backbone
from orchestrator.models.classifier import build_classifier_head, mean_over_views
from orchestrator.models.head import Head, Standardize, build_head
from orchestrator.models.placing import placed
from orchestrator.models.tokens import Tokens
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.experiment import HEAD, Experiment
from orchestrator.spec.parts import by_position
from orchestrator.spec.record import EpochRow, Interpolation, PhaseRow, Status
from orchestrator.spec.strategy import FineTuning, StrategyParams, ZeroShot
from orchestrator.tasks.annotations import IGNORED
from orchestrator.tasks.losses import (
    Loss,
    balanced_class_weights,
    build_loss,
    one_hot,
    tag_weights,
)
from orchestrator.tasks.task import Said, Task, build_task
from orchestrator.training.checkpoint import (
    Checkpoint,
    folder_name,
    keep_only,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from orchestrator.training.io import Decision, TrialIO
from orchestrator.training.network import Network
from orchestrator.training.phase_run import PhaseRun
from orchestrator.training.phases import Phase, compile_phases
from orchestrator.training.sources import EVALUATION_BATCH, iterate_judged
from orchestrator.training.wise_ft import ALPHAS, interpolated
from orchestrator.training.workers import Workers

STANDARDIZE_ROWS = 20_000
STANDARDIZE_TEXTS = 256  # whose positions a head's statistics are taken from


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended, and everything measured on the way."""

    status: Status = "finished"
    reason: str = ""
    phases: tuple[PhaseRow, ...] = ()
    epochs: tuple[EpochRow, ...] = ()
    best_epoch: int | None = None
    validation: dict[str, float] = field(default_factory=dict)
    objective: float | None = None
    interpolation: Interpolation | None = None
    checkpoint: str | None = None
    seconds: float = 0.0
    images_per_s: float = 0.0


def run_trial(experiment: Experiment, io: TrialIO) -> TrialResult:
    """Run one Experiment on this worker, from its newest checkpoint where there is one.

    Every worker of the trial calls this with the same experiment; all return the same result. The
    outcome is a function of the experiment: the number of workers changes it only by rounding, and
    an interruption not at all.

    Args:
        experiment: What to run.
        io: The surroundings.

    Returns:
        The result; `diverged` with the last finite checkpoint when a loss is no number.
    """
    if isinstance(experiment.strategy, ZeroShot):
        return run_zero_shot(experiment, io, io.checkpoints)
    return _Trial(experiment, io).run()


def run_zero_shot(experiment: Experiment, io: TrialIO, checkpoints: Path) -> TrialResult:
    """Measure the head that the labels' texts make, on stored features; nothing is trained.

    Its one row has the loss on the training examples as well, which it has not seen either.

    Args:
        experiment: What to measure.
        io: The surroundings of an experiment with the same texts.
        checkpoints: Where the head is kept.
    """
    started_s = time.monotonic()
    strategy, task, targets = (
        experiment.strategy,
        build_task(experiment.task),
        io.examples.targets(),
    )
    train, validation = (io.examples.indices(split) for split in ("train", "validation"))
    width = io.features(train[:1]).shape[1]
    head = build_head(
        strategy, n_features=width, n_outputs=len(experiment.task.outputs), seed=strategy.seed
    )
    head.start_from(io.label_embeddings())
    head.eval()
    with torch.inference_mode():
        seen = [
            head(torch.from_numpy(io.features(validation, view)))
            for view in range(strategy.predict_views)
        ]
        probs = torch.from_numpy(task.probabilities(mean_over_views(seen).numpy()))
        losses = Loss(experiment.task, strategy, class_weights=None)(
            head(torch.from_numpy(io.features(train))), one_hot(targets[train], experiment.task)
        )
    metrics = task.metrics(probs.numpy().astype("float64"), targets[validation])
    frozen = facts_of(experiment.backbone).n_parameters + sum(p.numel() for p in head.parameters())
    phase = PhaseRow(name="zero-shot", epochs=0, groups=(), trainable=0, frozen=frozen)
    seconds = time.monotonic() - started_s
    row = EpochRow(
        epoch=1,
        phase=phase.name,
        train_loss=float(losses.mean()),
        validation=metrics,
        seconds=seconds,
        images_per_s=len(validation) / max(seconds, 1e-9),
    )
    if io.rank == 0:
        write_checkpoint(
            checkpoints,
            1,
            weights={f"head.{name}": t for name, t in head.state_dict().items()},
            optimizer=None,
            schedule=None,
            validation={"probs": probs},
            state={
                "experiment": experiment.digest,
                "phases": [phase.to_json()],
                "epochs": [row.to_json()],
                "best_epoch": 1,
                "seconds": seconds,
            },
        )
    objective = experiment.objective
    return TrialResult(
        phases=(phase,),
        epochs=(row,),
        best_epoch=1,
        validation=metrics,
        objective=metrics.get(objective.metric, objective.worst),
        checkpoint=f"checkpoints/{folder_name(1)}",
        seconds=seconds,
        images_per_s=row.images_per_s,
    )


def build_network(experiment: Experiment, io: TrialIO) -> Network:
    """The experiment's backbone, and its parent's head or a new one.

    A new head standardises by the stored features, or starts from texts.
    """
    strategy = experiment.strategy
    backbone = io.backbone()
    head = build_classifier_head(backbone, strategy, n_outputs=len(experiment.task.outputs))
    if HEAD in experiment.parents:
        head.load_state_dict(io.parent_head())
    elif strategy.head == "text":
        head.start_from(io.label_embeddings())
    elif strategy.strategy != "scratch" and strategy.pooling == "none":
        assert isinstance(head.standardize, Standardize)
        head.standardize.fit(sampled_positions(experiment, backbone, io))
    elif strategy.strategy != "scratch":
        fit_standardize(head, io)
    return placed(Network(backbone, head, strategy), io.device)


def fit_standardize(head: Head, io: TrialIO) -> None:
    """Take a head's statistics from the stored features of the training examples."""
    rows = io.examples.indices("train")
    step = max(1, len(rows) // STANDARDIZE_ROWS)
    assert isinstance(head.standardize, Standardize)
    head.standardize.fit(torch.from_numpy(io.features(rows[::step])))


def sampled_positions(experiment: Experiment, backbone: Backbone, io: TrialIO) -> Tensor:
    """What a head on positions reads, of an even sample of the training inputs: float32 [n, D].

    They are computed here, so that whether anything is stored makes no difference.
    """
    train = pieces_of(io.examples, experiment.input).indices("train")
    chosen = train[np.linspace(0, len(train) - 1, min(STANDARDIZE_TEXTS, len(train))).astype(int)]
    backbone.eval().to(io.device)
    found = []
    batches = batched(chosen, EVALUATION_BATCH)
    for views in iterate_judged(io.examples, list(batches), experiment, threads=io.threads):
        with torch.inference_mode():
            inputs = network_inputs(views[0], experiment.input, io.device)
            assert isinstance(inputs, Tokens)
            found.append(backbone.features(inputs, pooling="none")[inputs.mask].cpu())
    return torch.cat(found)


class _Trial:
    """The state of one running trial: the network, the rows so far, and the best epoch."""

    def __init__(self, experiment: Experiment, io: TrialIO) -> None:
        self.experiment = experiment
        self.io = io
        self.task: Task = build_task(experiment.task)
        self.workers = Workers(rank=io.rank, world_size=io.world_size, device=io.device)
        torch.manual_seed(experiment.strategy.seed)
        self.network = build_network(experiment, io)
        self.phases = compile_phases(
            experiment.strategy,
            self.network.backbone.n_stages,
            handed_over=HEAD in experiment.parents,
        )
        self.zero_shot = self._zero_shot_tensors()
        self.pieces = pieces_of(io.examples, experiment.input)
        self.truth = truth_of(io.examples, "validation")
        self.loss = trial_loss(experiment, self.task, self.pieces, io.device)
        self.result = TrialResult()
        self.started_s = time.monotonic()

    def run(self) -> TrialResult:
        """All phases, then the best epoch."""
        checkpoint = newest_checkpoint(self.io.checkpoints)
        if checkpoint is not None:
            self._restore(checkpoint)
        first = 1
        try:
            for phase in self.phases:
                stopped_by = self._phase(phase, first, checkpoint)
                if stopped_by is not None:
                    return self._ended("stopped", stopped_by)
                first += phase.epochs
        except DivergedError as err:
            return self._ended("diverged", str(err))
        return self._ended("finished", "")

    def _phase(self, phase: Phase, first: int, checkpoint: Checkpoint | None) -> str | None:
        """Run what is left of a phase whose first epoch is `first`; who stopped it, if anybody."""
        done = len(self.result.epochs)
        last = first + phase.epochs - 1
        if done >= last:
            return None
        run = PhaseRun(self.experiment, phase, self.network, self.loss, self.io, self.workers)
        if len(self.result.phases) == self.phases.index(phase):
            self.result = replace(self.result, phases=(*self.result.phases, run.row()))
        self.io.on_phase(run.row())
        if checkpoint is not None and first <= done < last:
            run.restore(checkpoint)
        for epoch in range(max(first, done + 1), last + 1):
            decision, reason = self._epoch(run, epoch)
            if self.workers.agree(decision is Decision.STOP) and epoch < self._n_epochs():
                return reason
        run.finish()
        return None

    def _epoch(self, run: PhaseRun, epoch: int) -> tuple[Decision, str]:
        """Train one epoch, measure it, keep it, and tell."""
        started_s = time.monotonic()
        train_loss, n_images = run.train(epoch, self._n_epochs())
        train_s = time.monotonic() - started_s
        said = self._validated(run)
        metrics = self.task.metrics(said, self.truth)
        row = EpochRow(
            epoch=epoch,
            phase=run.phase.name,
            train_loss=train_loss,
            validation=metrics,
            seconds=time.monotonic() - started_s,
            images_per_s=n_images / max(train_s, 1e-9),
        )
        self._note(row)
        if self.io.rank == 0:
            with run.averaged():
                weights = {k: t.clone() for k, t in self._trained().items()}
            self._keep(run, epoch, said, weights)
        self.workers.barrier()
        assert self.result.objective is not None
        return self.io.report(row, self.result.objective)

    def _validated(self, run: PhaseRun) -> Said:
        """What the network says of all validation examples, on every worker."""
        n = len(self.pieces.indices("validation"))
        logits = self.workers.gather(run.validation_logits(), n)
        if not torch.isfinite(logits).all():
            raise DivergedError("the validation outputs are not finite")
        return self.pieces.said(logits.numpy(), "validation", self.task)

    def _note(self, row: EpochRow) -> None:
        """Add an epoch to the result and see whether it is the best."""
        objective = self.experiment.objective
        value = row.validation.get(objective.metric, objective.worst)
        result = replace(self.result, epochs=(*self.result.epochs, row))
        if objective.better(value, self.result.objective):
            result = replace(
                result, best_epoch=row.epoch, objective=value, validation=row.validation
            )
        self.result = replace(result, seconds=self._seconds())

    def _trained(self) -> dict[str, Tensor]:
        return self.network.trained_tensors(self.phases)

    def _keep(self, run: PhaseRun, epoch: int, said: Said, weights: dict[str, Tensor]) -> None:
        """Write this epoch's checkpoint; of the others only the best stays."""
        root = self.io.checkpoints
        write_checkpoint(
            root,
            epoch,
            weights=weights,
            optimizer=run.optimizer,
            schedule=run.schedule,
            validation={"probs": torch.from_numpy(self.task.packed(said))},
            state={**self._state(), "scaler": run.scaler_state()},
            last=run.last_weights(),
        )
        keep_only(root, {epoch, self.result.best_epoch or epoch})

    def _state(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment.digest,
            "phases": [row.to_json() for row in self.result.phases],
            "epochs": [row.to_json() for row in self.result.epochs],
            "best_epoch": self.result.best_epoch,
            "seconds": self._seconds(),
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Take up where a checkpoint left off: weights, rows, best epoch, seconds spent.

        Raises:
            IntegrityError: It is another experiment's.
        """
        if checkpoint.state["experiment"] != self.experiment.digest:
            raise IntegrityError(
                f"{checkpoint.folder} is a checkpoint of another experiment. Delete it, and this "
                "trial starts anew"
            )
        load_trained(self.network, checkpoint)
        for content in checkpoint.state["epochs"]:
            self._note(EpochRow.model_validate(content))
        phases = tuple(PhaseRow.model_validate(p) for p in checkpoint.state["phases"])
        self.started_s = time.monotonic() - checkpoint.state["seconds"]
        self.result = replace(self.result, phases=phases)

    def _ended(self, status: Status, reason: str) -> TrialResult:
        """The result, with the best epoch's weights back in the network."""
        best = self.result.best_epoch
        name = folder_name(best) if best is not None else None
        if name is not None:
            checkpoint = read_checkpoint(self.io.checkpoints / name)
            if checkpoint is None:
                raise IntegrityError(
                    f"the checkpoint {self.io.checkpoints / name} of the best epoch is missing or "
                    "damaged. Run the trial again and it is computed again"
                )
            load_trained(self.network, checkpoint)
            self.workers.barrier()
            if status in ("finished", "stopped"):
                self._go_back(checkpoint)
            if self.io.rank == 0:
                keep_only(self.io.checkpoints, {best or 0})
        seconds_an_image = [1 / row.images_per_s for row in self.result.epochs if row.images_per_s]
        return replace(
            self.result,
            status=status,
            reason=reason,
            checkpoint=f"checkpoints/{name}" if name else None,
            seconds=self._seconds(),
            images_per_s=len(seconds_an_image) / sum(seconds_an_image) if seconds_an_image else 0.0,
        )

    def _zero_shot_tensors(self) -> dict[str, Tensor] | None:
        """What training will change, as zero-shot has it, where the trial ends between the two."""
        strategy = self.experiment.strategy
        if not (isinstance(strategy, FineTuning) and strategy.wise_ft):
            return None
        backbone, n_outputs = self.network.backbone, self.task.n_outputs
        head = build_classifier_head(backbone, strategy, n_outputs=n_outputs).to(self.io.device)
        head.start_from(self.io.label_embeddings())
        texts = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
        return {k: texts.get(k, t).detach().clone() for k, t in self._trained().items()}

    def _go_back(self, best: Checkpoint) -> None:
        """Take the weights between zero-shot and the best epoch's that validate best.

        They replace the best epoch's checkpoint, which says that it was done.
        """
        if self.zero_shot is None:
            return
        if (known := best.state.get("interpolation")) is None:
            known = self._swept(best)
        self.result = replace(
            self.result,
            interpolation=Interpolation.model_validate(known["between"]),
            validation=known["validation"],
            objective=known["objective"],
        )

    def _swept(self, best: Checkpoint) -> dict[str, Any]:
        """Validate between the two ends, and keep the best: what it is and how good."""
        assert self.zero_shot is not None
        objective = self.experiment.objective
        tuned = {name: tensor.detach().clone() for name, tensor in self._trained().items()}
        phase = replace(self.phases[-1], ema_decay=0.0)
        run = PhaseRun(self.experiment, phase, self.network, self.loss, self.io, self.workers)
        tried: list[tuple[float, float]] = []
        found: dict[str, Any] = {"objective": None}
        for alpha in ALPHAS:
            weights = interpolated(self.zero_shot, tuned, alpha)
            self.network.load_state_dict(weights, strict=False)
            said = self._validated(run)
            metrics = self.task.metrics(said, self.truth)
            value = metrics.get(objective.metric, objective.worst)
            tried.append((alpha, value))
            if objective.better(value, found["objective"]):
                kept = (weights, said)
                found = {"alpha": alpha, "objective": value, "validation": metrics}
        between = Interpolation(alpha=found.pop("alpha"), objectives=tuple(tried))
        found["between"] = between.to_json()
        self.network.load_state_dict(kept[0], strict=False)
        if self.io.rank == 0:
            assert self.result.best_epoch is not None
            write_checkpoint(
                self.io.checkpoints,
                self.result.best_epoch,
                weights=kept[0],
                optimizer=None,
                schedule=None,
                validation={"probs": torch.from_numpy(self.task.packed(kept[1]))},
                state={**best.state, "interpolation": found},
            )
        self.workers.barrier()
        return found

    def _n_epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def _seconds(self) -> float:
        return time.monotonic() - self.started_s


def trial_loss(experiment: Experiment, task: Task, pieces: Pieces, device: torch.device) -> Loss:
    """The experiment's loss, with what it needs to know of the training data."""
    params: StrategyParams = experiment.strategy
    balanced = params.class_weights == "balanced"
    weights, n_words = None, 1.0
    if experiment.task.kind == "token-classification":
        targets = labelled_tokens(pieces, task)
        n_words = words_each(targets)
        if balanced:
            weights = tag_weights(targets[targets != IGNORED], task.n_outputs)
    elif balanced and not by_position(experiment.task.kind):
        train = pieces.targets(pieces.indices("train"), task)
        weights = balanced_class_weights(train, experiment.task)
    return build_loss(
        experiment.task,
        params,
        class_weights=None if weights is None else weights.to(device),
        words_each=n_words,
    )


def load_trained(network: Network, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors into a network that holds the experiment's initial weights."""
    missing, unexpected = network.load_state_dict(checkpoint.weights, strict=False)
    assert not unexpected, f"the checkpoint has tensors that the network lacks: {unexpected[:3]}"
    assert not [name for name in missing if name.startswith("head.")], "a head tensor is missing"
