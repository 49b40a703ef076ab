"""Early stopping without killing: Ray's rules advise, a flag tells, the trial ends itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from orchestrator.runtime.folders import TrialStart
from orchestrator.runtime.signals import Signals
from orchestrator.spec.experiment import HEAD
from orchestrator.spec.record import Record
from orchestrator.spec.search_space import Block
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tuning.clock import SweepClock
from orchestrator.tuning.experiments import values_of
from orchestrator.tuning.searcher import block_number
from orchestrator.tuning.suggestions import METRIC

TIME = "epoch"
REDUCTION_FACTOR = 3
MEDIAN_SAMPLES = 3
_NO_CONTROLLER: Any = None  # the rules that are used do not ask it


@dataclass(frozen=True)
class _Replayed:
    """Stands for a trial of an earlier run where a rule wants one."""

    trial_id: str


class FlaggingScheduler(FIFOScheduler):
    """One stopping rule a block, and the sweep's deadline; neither ever kills a trial."""

    def __init__(self, spec: SweepSpec, signals: Signals, clock: SweepClock) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rules = [_rule(spec, block) for block in spec.search]
        self._blocks = spec.search
        self._name = spec.tuner.scheduler
        self._signals = signals
        self._clock = clock
        self._flagged: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles it to scratch, which is never read back."""
        return {}

    def replay(self, starts: Mapping[str, TrialStart], records: Sequence[Record]) -> None:
        """Show the rules what earlier runs of the sweep reported, epoch by epoch."""
        for record in records:
            block = block_number(self._blocks, starts[record.trial])
            rule = self._rules[block]
            stub = cast(Trial, _Replayed(record.trial))
            if rule is None:
                continue
            rule.on_trial_add(_NO_CONTROLLER, stub)
            best: float | None = None
            objective = record.experiment.objective
            for row in record.epochs:
                value = row.validation.get(objective.metric, objective.worst)
                best = value if objective.better(value, best) else best
                epoch = row.epoch + self._ahead(block, HEAD in record.experiment.parents)
                rule.on_trial_result(_NO_CONTROLLER, stub, {TIME: epoch, METRIC: best})

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial joins its block."""
        rule = self._rules[trial.config["block"]]
        if rule is not None:
            rule.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Flag the trial when its rule or the deadline says stop; always continue.

        Defaults that a pretraining's gain is measured by are stopped by the deadline alone.
        """
        self._clock.tick()
        ours = trial.config["trial"]
        if result.get("ended") or ours in self._flagged:
            return TrialScheduler.CONTINUE
        block = trial.config["block"]
        rule = self._rules[block]
        ahead = self._ahead(block, trial.config["handed_over"])
        advice = (
            rule.on_trial_result(tune_controller, trial, {**result, TIME: result[TIME] + ahead})
            if rule is not None
            else TrialScheduler.CONTINUE
        )
        advised = advice != TrialScheduler.CONTINUE and not trial.config["whole"]
        reason = "budget" if self._clock.over() else self._name if advised else None
        if reason is not None:
            self._flagged.add(ours)
            self._signals.stop(ours, reason)
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """The rules have seen every epoch already."""

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing: the searcher and the records tell."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing is held."""

    def _ahead(self, block: int, handed_over: bool) -> int:
        """How many epochs of warm-up a trial was spared: rules compare epochs of fine-tuning."""
        return first_rung(self._blocks[block]) - 1 if handed_over else 0


def first_rung(block: Block) -> int:
    """The epoch of a block's first rung: the first after the longest head warm-up."""
    warm_up = values_of(block, "warm_up_epochs") or [_high(block, "warm_up_epochs")]
    return max(int(epochs) for epochs in warm_up) + 1


def _rule(spec: SweepSpec, block: Block) -> ASHAScheduler | MedianStoppingRule | None:
    mode, first = spec.objective.mode, first_rung(block)
    epochs = [int(n) for n in values_of(block, "epochs")] or [_high(block, "epochs")]
    last = max(epochs) + first - 1
    match spec.tuner.scheduler:
        case "none":
            return None
        case "asha":
            return ASHAScheduler(
                time_attr=TIME,
                metric=METRIC,
                mode=mode,
                max_t=last + 1,
                grace_period=min(first, last),
                reduction_factor=REDUCTION_FACTOR,
                stop_last_trials=False,
            )
        case "median":
            return MedianStoppingRule(
                time_attr=TIME,
                metric=METRIC,
                mode=mode,
                grace_period=first,
                min_samples_required=MEDIAN_SAMPLES,
                min_time_slice=cast(
                    int, math.inf
                ),  # the rule would pause trials, which ours never do
                hard_stop=False,
            )
        case _:
            assert_never(spec.tuner.scheduler)


def _high(block: Block, name: str) -> int:
    dim = block.dimensions.get(name)
    return int(max(dim.extremes)) if dim is not None else 0
