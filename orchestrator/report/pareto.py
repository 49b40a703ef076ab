"""Pareto: which Trials give the most for their cost, and the front that they form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.report.axes import Frame, axes, svg
from orchestrator.report.figures import Variant, figure, responsive, variants
from orchestrator.report.marks import mark, strategy_key
from orchestrator.report.markup import Safe, el, join
from orchestrator.report.scales import amount_over, linear_over
from orchestrator.report.sweep_view import SweepView, TrialView
from orchestrator.report.wording import cut, duration, number, plural, score
from orchestrator.spec.parts import LOWER_IS_BETTER

WIDE = Frame(width=1080, height=420, left=56, right=28, top=34, bottom=46)
NARROW = Frame(width=430, height=380, left=48, right=16, top=34, bottom=46)
MOST_NAMED = 8
MOST_VARIED = 150  # trials above which only the objective's variants are drawn


@dataclass(frozen=True)
class Cost:
    """What a Trial takes: a name with its unit, and the amount (0 is unknown)."""

    title: str
    get: Callable[[TrialView], float]


@dataclass(frozen=True)
class Point:
    """A Trial with its cost and score."""

    trial: TrialView
    cost: float
    score: float


@dataclass(frozen=True)
class Cloud:
    """All points of one choice of axes, best objective first, and the front's indices by cost."""

    cost: str
    metric: str
    points: tuple[Point, ...]
    front: tuple[int, ...]
    below: bool  # lower scores are better, so labels hang under their points

    @property
    def named(self) -> tuple[int, ...]:
        """The part of the front that is labelled: its cheapest point and its best ones."""
        if len(self.front) <= MOST_NAMED:
            return self.front
        return (self.front[0], *self.front[1 - MOST_NAMED :])

    @property
    def spoken(self) -> str:
        """The chart in a sentence."""
        shown = [self.points[i] for i in self.named]
        front = "; ".join(f"{p.trial.name}, {score(p.score)} at {number(p.cost)}" for p in shown)
        return (
            f"{self.metric} against {self.cost} for {plural(len(self.points), 'trial')}. "
            f"On the front: {front}."
        )


COSTS = (
    Cost("training time, s", lambda t: t.seconds),
    Cost("peak memory, MiB", lambda t: t.peak_memory_bytes / 2**20),
    Cost("trained parameters, millions", lambda t: t.trained_parameters / 1e6),
)


def pareto_front(
    costs: Sequence[float], scores: Sequence[float], mode: Literal["max", "min"]
) -> list[int]:
    """Indices of the points that none beats: none is as cheap and as good, and better in one.

    Args:
        costs: Lower is better.
        scores: As many; `mode` says which end is better.
        mode: `max` or `min`.

    Returns:
        Indices in order of cost.
    """
    sign = 1 if mode == "max" else -1
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -sign * scores[i]))
    front: list[int] = []
    for i in order:
        best = front[-1] if front else i
        equal = costs[i] == costs[best] and scores[i] == scores[best]
        if equal or sign * scores[i] > sign * scores[best]:
            front.append(i)
    return front


def pareto(view: SweepView) -> Safe:
    """The figure, or a sentence where no Trial has both a score and a cost."""
    drawn = [v for cost, metric in _choices(view) if (v := _variant(view, cost, metric))]
    timed = [t for t in view.scored if t.seconds > 0]
    if not drawn:
        return el("p", "No trial has both a score and a known cost.", class_="empty")
    note = (
        "The stepped line joins the trials that no other beats on both axes; the others are pale. "
    )
    note += _front_words(view, timed)
    hosts = {(p.host, p.device) for t in timed if t.record and (p := t.record.placement)}
    if len(hosts) > 1:
        note += f" Trials ran on {len(hosts)} different machines, so their times do not compare."
    return figure(
        _title(view, timed),
        variants(drawn, what="Axes"),
        note=note,
        legend=strategy_key(view.strategies),
        class_="wide",
    )


def _front_words(view: SweepView, timed: Sequence[TrialView]) -> str:
    """The front of the first choice of axes in words, from cheap to dear."""
    if not timed:
        return ""
    costs, scores = [t.seconds for t in timed], [t.objective or 0.0 for t in timed]
    front = [timed[i] for i in pareto_front(costs, scores, view.objective.mode)][-MOST_NAMED:]
    words = [f"{t.name} {score(t.objective)} in {duration(t.seconds)}" for t in front]
    return f"By training time: {'; '.join(words)}."


def _choices(view: SweepView) -> list[tuple[Cost, str]]:
    metric = view.objective.metric
    choices: list[tuple[Cost, str]] = [(cost, metric) for cost in COSTS]
    if len(view.trials) > MOST_VARIED:
        return choices
    others = {m for t in view.scored for m in t.validation} - {metric}
    return choices + [(COSTS[0], other) for other in sorted(others)]


def _title(view: SweepView, timed: Sequence[TrialView]) -> str:
    winner = view.winner
    costs, scores = [t.seconds for t in timed], [t.objective or 0.0 for t in timed]
    front = [timed[i] for i in pareto_front(costs, scores, view.objective.mode)]
    if winner is None or winner not in front or len(front) < 2:
        return "What each score costs"
    runner_up = front[front.index(winner) - 1]
    step = abs((winner.objective or 0.0) - (runner_up.objective or 0.0))
    return (
        f"The last {score(step)} of `{view.objective.metric}` cost "
        f"{number(winner.seconds / runner_up.seconds)} times the training time "
        f"({duration(winner.seconds)} against {duration(runner_up.seconds)})"
    )


def _score(trial: TrialView, metric: str, view: SweepView) -> float | None:
    return trial.objective if metric == view.objective.metric else trial.validation.get(metric)


def _variant(view: SweepView, cost: Cost, metric: str) -> Variant | None:
    points = [
        Point(trial, amount, shown)
        for trial in view.scored
        if (amount := cost.get(trial)) > 0 and (shown := _score(trial, metric, view)) is not None
    ]
    if not points:
        return None
    mode: Literal["max", "min"] = "min" if metric in LOWER_IS_BETTER else "max"
    if metric == view.objective.metric:
        mode = view.objective.mode
    front = pareto_front([p.cost for p in points], [p.score for p in points], mode)
    cloud = Cloud(cost.title, metric, tuple(points), tuple(front), below=mode == "min")
    return Variant(
        f"{metric} against {cost.title}",
        responsive(lambda wide: _drawing(cloud, WIDE if wide else NARROW, view.winner)),
    )


def _drawing(cloud: Cloud, frame: Frame, winner: TrialView | None) -> Safe:
    x = amount_over([p.cost for p in cloud.points])
    y = linear_over([p.score for p in cloud.points], pad=0.08)
    placed = [(frame.x(x(p.cost)), frame.y(y(p.score))) for p in cloud.points]
    marks = [
        el(
            "g",
            mark(p.trial, *placed[i], winner=p.trial is winner),
            class_=None if i in cloud.front else "beaten",
        )
        for i, p in enumerate(cloud.points)
    ]
    named = [(cloud.points[i].trial, placed[i]) for i in cloud.named]
    return svg(
        frame,
        axes(frame, x, y, x_title=cloud.cost, y_title=cloud.metric),
        el("path", class_="front", d=_steps(frame, [placed[i] for i in cloud.front])),
        *reversed(marks),
        _names(frame, named, below=cloud.below),
        alternative=cloud.spoken,
    )


def _steps(frame: Frame, places: Sequence[tuple[float, float]]) -> str:
    """From the cheapest point to the right edge: what can be had for at most that cost."""
    path = f"M{places[0][0]:.1f},{places[0][1]:.1f}"
    for x, y in places[1:]:
        path += f"H{x:.1f}V{y:.1f}"
    return f"{path}H{frame.width - frame.right:.0f}"


def _names(
    frame: Frame, named: Sequence[tuple[TrialView, tuple[float, float]]], *, below: bool
) -> Safe:
    """Labels beside their points, the best first, left out where they would cover another."""
    parts: list[Safe] = []
    taken: list[tuple[float, float, float]] = []
    for trial, (x, y) in reversed(named):
        place = f"#{trial.rank} " if trial.rank is not None else ""
        words = cut(f"{place}{trial.strategy}", 30)
        at, width = y + 20 if below else y - 11, 6.6 * len(words)
        left = min(max(frame.left, x - width / 2), frame.width - frame.right - width)
        if any(abs(at - b) < 16 and left < r and left + width > a for a, r, b in taken):
            continue
        taken.append((left, left + width, at))
        parts.append(el("text", words, class_="name halo", x=left, y=at))
    return join(parts)
