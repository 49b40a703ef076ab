"""The Record: the immutable JSON of one ended Trial."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.spec.experiment import Experiment
from orchestrator.spec.frozen import Frozen

Status = Literal["finished", "stopped", "diverged", "failed"]


class GroupRow(Frozen):
    """One ParamGroup of a Phase: its rate at the peak of the schedule and its size."""

    name: str
    lr: float
    weight_decay: float
    parameters: int


class PhaseRow(Frozen):
    """What one Phase trained: groups, and parameter counts over the whole model."""

    name: str
    epochs: int
    groups: tuple[GroupRow, ...]
    trainable: int
    frozen: int

    @property
    def total(self) -> int:
        """All parameters of backbone and head."""
        return self.trainable + self.frozen


class EpochRow(Frozen):
    """One epoch: where it stood, what it cost, and the validation metrics after it."""

    epoch: int  # 1-based, over all phases
    phase: str
    train_loss: float
    validation: dict[str, float]
    seconds: float
    images_per_s: float


class Placement(Frozen):
    """Where a Trial ran; it biases comparisons of time, never the result."""

    host: str
    device: str
    workers: int
    threads: int
    precision: str


class Interpolation(Frozen):
    """Where between zero-shot (0) and fine-tuned (1) weights a Trial ended.

    WiSE-FT: Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, CVPR 2022.
    """

    alpha: float = Field(ge=0, le=1, description="the share of the fine-tuned weights")
    objectives: tuple[tuple[float, float], ...] = Field(
        description="(alpha, objective on validation), for each that was tried"
    )


class Record(Frozen):
    """How one Trial ended, written once.

    `stopped` carries in `reason` who stopped it (`asha`, `median`, `budget`); `diverged` and
    `failed` carry the error. `validation` and `objective` are those of `best_epoch`. `seconds` are
    spent in training, `start_up_seconds` before: from Tune's start of the trial until its workers
    have processes, data and weights.
    """

    trial: str
    status: Status
    reason: str = ""
    experiment: Experiment
    attempts: int = 1
    phases: tuple[PhaseRow, ...] = ()
    epochs: tuple[EpochRow, ...] = ()
    best_epoch: int | None = None
    validation: dict[str, float] = Field(default_factory=dict)
    objective: float | None = None
    interpolation: Interpolation | None = None
    checkpoint: str | None = None  # folder of the best epoch, relative to the trial's folder
    files: dict[str, str] = Field(default_factory=dict, description="relative path → SHA-256")
    seconds: float = 0.0
    start_up_seconds: float = 0.0
    images_per_s: float = 0.0
    peak_memory_bytes: int = 0
    placement: Placement | None = None
    started_at: str = ""  # ISO 8601, UTC
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def params(self) -> dict[str, Any]:
        """The strategy's parameters, without its name, and without those that it does not take."""
        strategy = self.experiment.strategy
        values = strategy.to_json()
        values.pop("strategy")
        return {k: v for k, v in values.items() if strategy.only is None or k in strategy.only}
