"""Comparison: how the winner stands to scratch, zero-shot, its default, and the runners-up."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.report.intervals import Gain, Interval, interval_of, paired_gain
from orchestrator.report.predictions import Predictions
from orchestrator.report.reading import read_validation
from orchestrator.report.sweep_view import SweepView, TrialView

MOST_RIVALS = 10


@dataclass(frozen=True)
class Standing:
    """One line of evidence: a model's score on a split, with its interval where known."""

    name: str
    split: str
    score: float
    interval: Interval | None
    trial: str


@dataclass(frozen=True)
class Comparison:
    """The evidence for the winner, all on the validation split but for the test's own line."""

    standings: tuple[Standing, ...] = ()
    over_baseline: Gain | None = None
    over_floor: Gain | None = None
    over_default: Gain | None = None
    ties: tuple[TrialView, ...] = ()  # runners-up that sampling noise does not tell from the winner
    n_rivals: int = 0  # how many runners-up could be compared


def compare(view: SweepView) -> Comparison:
    """Paired comparisons of the winner, from the predictions that the trials left behind."""
    winner = view.winner
    if winner is None:
        return Comparison()
    ours = read_validation(view, winner)
    rivals = (
        {t.id: read_validation(view, t) for t in view.scored[1 : 1 + MOST_RIVALS]} if ours else {}
    )
    gains = {id_: _gain(view, ours, theirs) for id_, theirs in rivals.items()}
    ties = tuple(
        t for t in view.scored if (g := gains.get(t.id)) and g.interval and g.interval.low <= 0
    )
    return Comparison(
        standings=_standings(view, ours),
        over_baseline=_over(view, ours, view.baseline),
        over_floor=_over(view, ours, view.floor),
        over_default=_over(view, ours, view.default),
        ties=ties,
        n_rivals=sum(gain is not None for gain in gains.values()),
    )


def _over(view: SweepView, ours: Predictions | None, other: TrialView | None) -> Gain | None:
    """The gain over another trial: its records' difference, with a paired interval if possible."""
    winner = view.winner
    if winner is None or other is None or other.id == winner.id:
        return None
    if winner.objective is None or other.objective is None:
        return None
    sign = 1 if view.objective.mode == "max" else -1
    paired = _gain(view, ours, read_validation(view, other))
    return Gain(sign * (winner.objective - other.objective), paired.interval if paired else None)


def _gain(view: SweepView, ours: Predictions | None, theirs: Predictions | None) -> Gain | None:
    if ours is None or theirs is None:
        return None
    return paired_gain(ours, theirs, view.objective)


def _standings(view: SweepView, ours: Predictions | None) -> tuple[Standing, ...]:
    winner, metric = view.winner, view.objective.metric
    lines: list[Standing] = []
    if winner is None or winner.objective is None:
        return ()
    if view.test is not None and metric in view.test.metrics:
        lines.append(
            Standing("Winner", "test", view.test.metrics[metric], _test_interval(view), winner.id)
        )
    validated = interval_of(ours, metric) if ours else None
    lines.append(Standing("Winner", "validation", winner.objective, validated, winner.id))
    for name, other in (
        ("Its default", view.default),
        ("Zero-shot", view.floor),
        ("From scratch", view.baseline),
    ):
        if other is not None and other.id != winner.id and other.objective is not None:
            theirs = read_validation(view, other)
            interval = interval_of(theirs, metric) if theirs else None
            lines.append(Standing(name, "validation", other.objective, interval, other.id))
    return tuple(lines)


def _test_interval(view: SweepView) -> Interval | None:
    stored = view.test.intervals.get(view.objective.metric) if view.test else None
    if stored is not None:
        return Interval(*stored)
    tested = view.predictions if view.predictions and view.predictions.split == "test" else None
    return interval_of(tested, view.objective.metric) if tested else None
