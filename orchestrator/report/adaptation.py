"""Adaptation: what a domain-adaptive pretraining bought, on equal terms.

Each domain-adaptive block's default is compared with the trial that is the same in all but the
pretraining, on the same validation examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.report.comparison import Standing
from orchestrator.report.figures import figure
from orchestrator.report.forest import forest
from orchestrator.report.intervals import Gain, interval_of, paired_gain
from orchestrator.report.markup import Safe, join
from orchestrator.report.reading import read_validation
from orchestrator.report.sweep_view import Json, SweepView, TrialView
from orchestrator.report.wording import finite, signed
from orchestrator.spec.experiment import HEAD, Experiment
from orchestrator.spec.pretraining import PRETRAINING
from orchestrator.spec.strategy import DOMAIN_ADAPTIVE
from orchestrator.tuning.handing_over import wants_head, warm_up_head


@dataclass(frozen=True)
class Adaptation:
    """A trial that starts from an adapted backbone, its twin without, and the gain between them.

    Attributes:
        row: What the plan says of the pretraining; empty where it says nothing.
    """

    trial: TrialView
    twin: TrialView | None
    gain: Gain | None
    row: Json

    @property
    def backbone(self) -> str:
        """What was adapted."""
        return self.trial.backbone

    @property
    def verdict(self) -> str:
        """Whether the pretraining helped, in a few words."""
        if self.twin is None or self.gain is None:
            return "its twin without pretraining has no score, so the gain is not known"
        if self.gain.interval is None:
            return "without an interval: predictions are missing, or too many for this metric"
        if not self.gain.clear:
            return "no clear gain: the difference is within noise"
        return "a clear gain" if self.gain.value > 0 else "it does not help: the score fell"

    @property
    def sentence(self) -> str:
        """The gain in words."""
        name = f"pretraining {self.backbone} on the domain"
        if self.gain is None:
            return f"{name}: {self.verdict}"
        pair = ""
        if self.gain.interval:
            low, high = self.gain.interval.low, self.gain.interval.high
            pair = f" (paired 95 % {signed(low)} to {signed(high)})"
        return f"{signed(self.gain.value)} by {name}{pair}: {self.verdict}"


def adaptations(view: SweepView) -> tuple[Adaptation, ...]:
    """Every domain-adaptive default that has a score, with its twin."""
    return tuple(
        _compared(view, trial)
        for trial in view.scored
        if trial.default and trial.strategy == DOMAIN_ADAPTIVE and trial.record is not None
    )


def adaptation(view: SweepView, found: tuple[Adaptation, ...]) -> Safe:
    """One figure a pretraining; empty where there was none."""
    return join([_figure(view, one) for one in found])


def _figure(view: SweepView, one: Adaptation) -> Safe:
    standings = [
        _standing(view, name, trial)
        for name, trial in (("Pretrained", one.trial), ("Without", one.twin))
        if trial is not None and trial.objective is not None
    ]
    title = one.sentence[0].upper() + one.sentence[1:]
    note = (
        "The default of the domain-adaptive block, and the same trial from the backbone as it "
        "comes: same parameters, same seed, same validation examples."
    )
    return figure(
        title, forest(standings, metric=view.objective.metric), note=note + _measured(one)
    )


def _measured(one: Adaptation) -> str:
    """What was measured of the backbone itself, as sentences."""
    before, after = (_mapping(one.row.get(key)) for key in ("before", "after"))
    words = ""
    old, new = finite(before.get("perplexity")), finite(after.get("perplexity"))
    if old is not None and new is not None:
        words += (
            f" Held-out perplexity {old:.2f} before (the frozen encoder under its own "
            f"head, or a new one that has converged), {new:.2f} after."
        )
    if (spread := finite(after.get("spread"))) is not None:
        words += f" Spread of the projections {spread:.2f} (0: collapsed)."
    pair = _mapping(one.row.get("neighbours"))
    old, new = finite(pair.get("before")), finite(pair.get("after"))
    if old is not None and new is not None:
        words += (
            " Nearest training examples of the same class, by frozen features: "
            f"{old:.3f} before, {new:.3f} after."
        )
    return words


def _compared(view: SweepView, trial: TrialView) -> Adaptation:
    assert trial.record is not None
    digest = trial.record.experiment.parents.get(PRETRAINING)
    rows = view.plan.get("pretrainings")
    known = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    row: Json = next((row for row in known if row.get("digest") == digest), {})
    twin = next((t for t in view.scored if _is_twin(t, trial.record.experiment, row)), None)
    return Adaptation(trial, twin, None if twin is None else _gain(view, trial, twin), row)


def _is_twin(other: TrialView, adapted: Experiment, row: Json) -> bool:
    """Whether a trial is the same but for the pretraining."""
    if other.record is None or PRETRAINING in other.record.experiment.parents:
        return False
    theirs = other.record.experiment
    ours, same = adapted.strategy.to_json(), theirs.strategy.to_json()
    strategy = {**ours, "strategy": ours.pop("then", None)}
    strategy.pop("then", None)
    parent = row.get("parent_weights", theirs.weights_digest)
    # Like the pretrained one it starts from a head of its own, not from the best of a search.
    parents = {name: digest for name, digest in theirs.parents.items() if name != HEAD}
    alone = theirs.model_copy(update={"parents": parents})
    own = warm_up_head(alone).digest if wants_head(alone) else ""
    return (
        strategy == same
        and theirs.weights_digest == parent
        and theirs.backbone.name == adapted.backbone.name
        and theirs.input == adapted.input
        and theirs.parents.get(HEAD, own) == own
    )


def _gain(view: SweepView, trial: TrialView, twin: TrialView) -> Gain | None:
    """The difference of the records, with a paired interval where predictions are there."""
    if trial.objective is None or twin.objective is None:
        return None
    sign = 1 if view.objective.mode == "max" else -1
    ours, theirs = read_validation(view, trial), read_validation(view, twin)
    paired = paired_gain(ours, theirs, view.objective) if ours and theirs else None
    value = sign * (trial.objective - twin.objective)
    return Gain(value, paired.interval if paired else None)


def _standing(view: SweepView, name: str, trial: TrialView) -> Standing:
    found = read_validation(view, trial)
    interval = interval_of(found, view.objective.metric) if found else None
    return Standing(name, "validation", trial.objective or 0.0, interval, trial.id)


def _mapping(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}
