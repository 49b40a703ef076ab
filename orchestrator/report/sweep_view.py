"""SweepView: all that a sweep folder says about itself, ready to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.report.predictions import Predictions
from orchestrator.report.scales import Course
from orchestrator.report.wording import value
from orchestrator.spec.parts import ObjectiveSpec, TaskSpec
from orchestrator.spec.record import Record

Json = Mapping[str, Any]


@dataclass(frozen=True)
class TrialView:
    """One Trial: its line of the leaderboard and, where it could be read, its Record."""

    id: str
    rank: int | None = None
    status: str = "unknown"
    reason: str = ""
    block: str = ""
    strategy: str = ""
    backbone: str = ""
    searched: Json = field(default_factory=dict)
    objective: float | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    best_epoch: int | None = None
    n_epochs: int = 0
    seconds: float = 0.0
    images_per_s: float = 0.0
    peak_memory_bytes: int = 0
    default: bool = False
    record: Record | None = None

    @property
    def scored(self) -> bool:
        """Whether it ended with a model whose objective counts."""
        return self.status in {"finished", "stopped"} and self.objective is not None

    @property
    def trained_parameters(self) -> int:
        """The most parameters that any of its phases trained; 0 when unknown."""
        phases = self.record.phases if self.record else ()
        return max((phase.trainable for phase in phases), default=0)

    @property
    def warm_up_epochs(self) -> int:
        """Epochs of the first of several phases, in which only the head learns."""
        phases = self.record.phases if self.record else ()
        return phases[0].epochs if len(phases) > 1 else 0

    @property
    def name(self) -> str:
        """How a sentence names it."""
        place = f"#{self.rank} " if self.rank is not None else ""
        return f"{place}{self.strategy} · {self.backbone}"

    @property
    def settings(self) -> str:
        """The searched values in one line."""
        return ", ".join(f"{key} {value(v)}" for key, v in self.searched.items())


@dataclass(frozen=True, eq=False)
class HeldOutScore:
    """What the winner scored on the test split, read once, after the search."""

    metrics: Mapping[str, float]
    n: int | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class SweepView:
    """A Sweep as read from its folder. What is missing is empty or None, never an error."""

    folder: Path
    name: str
    digest: str
    created_at: str
    spec: Json
    task: TaskSpec | None
    data: Json
    environment: Json
    plan: Json
    objective: ObjectiveSpec
    trials: tuple[TrialView, ...]  # as ranked, then those without a score
    baseline: TrialView | None
    seconds: float | None
    status: str
    test: HeldOutScore | None
    predictions: Predictions | None  # the winner's, on test where that was read, else validation
    notes: tuple[str, ...]

    @property
    def scored(self) -> tuple[TrialView, ...]:
        """Trials with an objective, best first."""
        return tuple(trial for trial in self.trials if trial.scored)

    @property
    def winner(self) -> TrialView | None:
        """The best Trial, if any has a score."""
        return self.scored[0] if self.scored else None

    @property
    def floor(self) -> TrialView | None:
        """The best zero-shot Trial: what labels alone give, before anything is trained."""
        return next((trial for trial in self.scored if trial.strategy == "zero-shot"), None)

    @property
    def default(self) -> TrialView | None:
        """The vetted default of the winner's block."""
        if self.winner is None:
            return None
        block = (self.winner.block, self.winner.strategy)
        return next((t for t in self.scored if t.default and (t.block, t.strategy) == block), None)

    @cached_property
    def strategies(self) -> tuple[str, ...]:
        """Strategies that were tried, from the least to the most that moves; others behind."""
        order = ["zero-shot", "feature-extraction", "partial", "full", "domain-adaptive", "scratch"]
        found = {trial.strategy for trial in self.trials}
        return (*(s for s in order if s in found), *sorted(found - set(order)))

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Searched parameters, the ones that most Trials set first."""
        counts: dict[str, int] = {}
        for trial in self.trials:
            for key in trial.searched:
                counts[key] = counts.get(key, 0) + 1
        return tuple(sorted(counts, key=lambda key: (-counts[key], key)))

    def of(self, status: str) -> tuple[TrialView, ...]:
        """Trials that ended so."""
        return tuple(trial for trial in self.trials if trial.status == status)

    def range_of(self, parameter: str, *, strategy: str | None = None) -> Json:
        """How the spec's search draws a parameter, or an empty mapping where it lists values.

        Args:
            parameter: Its name.
            strategy: Look only in blocks of this strategy.
        """
        for block in self.spec.get("search") or ():
            if isinstance(block, Mapping) and strategy in (None, block.get("strategy")):
                found = _find(block, parameter)
                if found:
                    return found
        return {}

    def course_of(self, parameter: str) -> Course:
        """The scale on which the spec's search draws a parameter."""
        drawn = self.range_of(parameter)
        if "log" in drawn or drawn.get("kind") == "log":
            return "log"
        if drawn.keys() & {"uniform", "int"} or drawn.get("kind") in {"uniform", "int"}:
            return "linear"
        return "choice"


def _find(tree: Json, key: str) -> Json:
    """The first mapping under `key` at any depth."""
    here = tree.get(key)
    if isinstance(here, Mapping):
        return here
    for branch in tree.values():
        if isinstance(branch, Mapping) and (found := _find(branch, key)):
            return found
    return {}
