"""Whether a trial can still tell anything before the minutes of a sweep are over.

A trial that is stopped before its first epoch of fine-tuning has shown nothing but its warm-up.
What an epoch takes is what the sweep's own trials of that kind took, or else what was measured
earlier; where neither is known, the trial starts.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable

from orchestrator.data.examples import Examples
from orchestrator.runtime.feature_filling import FeatureNeed
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.experiment import HEAD, Experiment
from orchestrator.spec.record import Record
from orchestrator.training.phases import Phase, compile_phases
from orchestrator.tuning.clock import SweepClock
from orchestrator.tuning.plan import START_UP_S, CostBook, Part, cost_key, epoch_seconds
from orchestrator.tuning.sharing import stored_cut_of


class Deadline:
    """The end of a sweep's minutes, and what can be done until then.

    Args:
        clock: Of the sweep.
        examples: Its data.
        costs: Measured earlier.
        stored: What its trials read from the store.
        records: Its ended trials.
    """

    def __init__(
        self,
        clock: SweepClock,
        examples: Examples,
        *,
        costs: CostBook,
        stored: Collection[FeatureNeed],
        records: Iterable[Record],
    ) -> None:
        self._clock, self._examples = clock, examples
        self._costs, self._stored = costs, stored
        self._seen = self._epochs_of(records)
        self._quickest: tuple[float, str] | None = None

    def allows(self, experiment: Experiment) -> bool:
        """Whether the trial's first epoch after the warm-up can end in time, as far as is known."""
        left_s, needed_s = self._clock.left(), self.first_result_s(experiment)
        if left_s is None or needed_s is None or needed_s <= left_s:
            return True
        trial = f"a {experiment.strategy.strategy} trial of {experiment.backbone.name}"
        self._quickest = min(self._quickest or (needed_s, trial), (needed_s, trial))
        return False

    def reason(self) -> str | None:
        """Why trials were not started, if any were not."""
        if self._quickest is None:
            return None
        needed_s, trial = self._quickest
        return (
            f"no more trials start: {self._clock.left() or 0:.0f} s of budget.minutes are left, "
            f"and the quickest that was suggested, {trial}, takes about {needed_s:.0f} s to the "
            "end of its first epoch after the warm-up. A larger budget.minutes continues"
        )

    def first_result_s(self, experiment: Experiment) -> float | None:
        """Seconds from a trial's start to the end of its first epoch after the warm-up."""
        n_stages = facts_of(experiment.backbone).n_stages
        phases = compile_phases(
            experiment.strategy, n_stages, handed_over=HEAD in experiment.parents
        )
        total_s = START_UP_S
        for phase in phases:
            epoch_s = self._epoch_s(experiment, phase)
            if epoch_s is None:
                return None
            if phase is phases[-1]:
                return total_s + epoch_s
            total_s += phase.epochs * epoch_s
        return total_s

    def _epoch_s(self, experiment: Experiment, phase: Phase) -> float | None:
        part = self._part(experiment)
        if not phase.from_features and cost_key(part) in self._seen:
            return self._seen[cost_key(part)]
        return epoch_seconds(part, phase, self._examples, self._costs.find(part))

    def _part(self, experiment: Experiment) -> Part:
        return Part(experiment, stored_cut_of(experiment, self._stored))

    def _epochs_of(self, records: Iterable[Record]) -> dict[str, float]:
        """Median seconds of the last phase's epochs, by what decides them."""
        found: dict[str, list[float]] = {}
        for record in records:
            n_stages = facts_of(record.experiment.backbone).n_stages
            phases = compile_phases(record.experiment.strategy, n_stages)
            computed = {phase.name for phase in phases[-1:] if not phase.from_features}
            seconds = [row.seconds for row in record.epochs if row.phase in computed]
            if seconds:
                found.setdefault(cost_key(self._part(record.experiment)), []).extend(seconds)
        return {key: statistics.median(seconds) for key, seconds in found.items()}
