"""Parallel coordinates: every Trial as one line through its choices to its score."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.axes import Frame, svg
from orchestrator.report.figures import figure, scrolling
from orchestrator.report.marks import shades_of, spread
from orchestrator.report.markup import Safe, el, join
from orchestrator.report.scales import Choice, Scale, choice_over, linear_over, scale_over
from orchestrator.report.sweep_view import SweepView, TrialView
from orchestrator.report.wording import cut, plural

MOST_LINES = 240
MOST_PARAMETERS = 8
UNSET_ROOM = 34.0  # pixels under the axes where lines go that have no value there
MISSING = object()

Getter = Callable[[TrialView], Any]


@dataclass(frozen=True)
class Coordinate:
    """One vertical axis: its name, scale, and what it shows of a Trial."""

    name: str
    scale: Scale
    get: Getter


def parallel_coordinates(view: SweepView) -> Safe:
    """The figure, or a sentence where there is nothing to compare."""
    if not view.scored:
        return el("p", "No trial has a score, so there is no search to draw.", class_="empty")
    drawn = _drawn(view)
    coordinates = _coordinates(view, drawn)
    metric, best = view.objective.metric, view.scored[0]
    alternative = (
        f"Parallel coordinates of {plural(len(drawn), 'trial')} over "
        f"{', '.join(c.name for c in coordinates)}. The best trial: {best.strategy}, "
        f"{best.backbone}, {best.settings or 'no searched values'}. "
        "The leaderboard lists the same values."
    )
    shades = shades_of([t.objective or 0.0 for t in view.scored], view.objective)
    notes = ["Each line is a trial, darker when better; the orange line is the winner."]
    if any(_value(c, t) is MISSING for c in coordinates for t in drawn):
        notes.append("A line that dips below an axis did not set that value.")
    notes.append("Drag along an axis to keep the lines that pass there; click it to let go.")
    if len(drawn) < len(view.trials):
        notes.append(
            f"{len(drawn)} of {len(view.trials)} trials are drawn: the best, and an even sample "
            "of the rest."
        )
    if len(view.parameters) > MOST_PARAMETERS:
        notes.append(f"{MOST_PARAMETERS} of {len(view.parameters)} searched values have an axis.")
    return figure(
        f"What the best trials chose: follow the dark lines to high `{metric}`"
        if view.objective.mode == "max"
        else f"What the best trials chose: follow the dark lines to low `{metric}`",
        scrolling(_drawing(view, drawn, coordinates, alternative), label="Parallel coordinates"),
        note=" ".join(notes),
        legend=shades.key(metric),
        class_="wide",
    )


def _drawn(view: SweepView) -> tuple[TrialView, ...]:
    """All trials, or the best half of the room and an even sample of the others."""
    if len(view.trials) <= MOST_LINES:
        return view.trials
    half = MOST_LINES // 2
    others = view.trials[half:]
    sample = [others[i * len(others) // half] for i in range(half)]
    return (*view.trials[:half], *sample)


def _coordinates(view: SweepView, drawn: Sequence[TrialView]) -> list[Coordinate]:
    found = [
        Coordinate("strategy", Choice(view.strategies), lambda t: t.strategy),
        Coordinate("backbone", choice_over([t.backbone for t in drawn]), lambda t: t.backbone),
    ]
    for key in view.parameters[:MOST_PARAMETERS]:
        values = [t.searched[key] for t in drawn if key in t.searched]
        if values:
            found.append(Coordinate(key, scale_over(values, view.course_of(key)), _getter(key)))
    scores = [t.objective for t in drawn if t.scored and t.objective is not None]
    found.append(
        Coordinate(
            view.objective.metric,
            linear_over(scores),
            lambda t: t.objective if t.scored else MISSING,
        )
    )
    return found


def _getter(key: str) -> Getter:
    return lambda trial: trial.searched.get(key, MISSING)


def _value(coordinate: Coordinate, trial: TrialView) -> Any:
    return coordinate.get(trial)


def _drawing(
    view: SweepView,
    drawn: Sequence[TrialView],
    coordinates: Sequence[Coordinate],
    alternative: str,
) -> Safe:
    frame = Frame(
        width=max(720.0, 132.0 * len(coordinates)),
        height=400,
        left=24,
        right=112,
        top=40,
        bottom=20,
    )
    shades = shades_of([t.objective or 0.0 for t in view.scored], view.objective)
    winner = view.winner
    lines = []
    for index in range(len(drawn) - 1, -1, -1):
        trial = drawn[index]
        shade = shades(trial.objective) if trial.scored and trial.objective is not None else "none"
        places = [_place(frame, c, trial, index) for c in coordinates]
        lines.append(
            el(
                "path",
                class_=f"line {'winner' if trial is winner else shade}",
                d=_curve(frame, places),
                data_t=trial.id,
                data_y=",".join(f"{y:.0f}" for y in places),
            )
        )
    axes = [_axis(frame, c, i, len(coordinates)) for i, c in enumerate(coordinates)]
    unset = any(_value(c, t) is MISSING for c in coordinates for t in drawn)
    return svg(
        frame,
        el("g", *lines, class_="lines"),
        *axes,
        _unset_label(frame) if unset else "",
        alternative=alternative,
        class_="parallel",
    )


def _x(frame: Frame, index: int, count: int) -> float:
    return frame.x(index / (count - 1))


def _place(frame: Frame, coordinate: Coordinate, trial: TrialView, index: int) -> float:
    shown = _value(coordinate, trial)
    if shown is MISSING:
        return frame.height - frame.bottom + 4 * spread(index)
    fraction = coordinate.scale(shown)
    if isinstance(coordinate.scale, Choice):
        fraction += 0.55 * coordinate.scale.band * spread(index)
    return _y(frame, fraction)


def _y(frame: Frame, fraction: float) -> float:
    bottom = frame.height - frame.bottom - UNSET_ROOM
    return bottom - fraction * (bottom - frame.top)


def _curve(frame: Frame, places: Sequence[float]) -> str:
    points = [(_x(frame, i, len(places)), y) for i, y in enumerate(places)]
    path = f"M{points[0][0]:.0f},{points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (x0 + x1) / 2
        path += f"C{middle:.0f},{y0:.1f} {middle:.0f},{y1:.1f} {x1:.0f},{y1:.1f}"
    return path


def _axis(frame: Frame, coordinate: Coordinate, index: int, count: int) -> Safe:
    x, top, bottom = _x(frame, index, count), _y(frame, 1), _y(frame, 0)
    anchor = "" if index == 0 else " middle" if index < count - 1 else " middle strong"
    parts = [
        el("line", class_="coordinate", x1=x, x2=x, y1=top, y2=bottom),
        el(
            "text",
            cut(coordinate.name, 19),
            class_=f"axis-title{anchor}",
            x=x - (12 if index == 0 else 0),
            y=frame.top - 18,
        ),
        el(
            "rect",
            class_="zone",
            x=x - 14,
            y=top - 8,
            width=28,
            height=bottom - top + 16,
            data_axis=index,
        ),
    ]
    for tick in coordinate.scale.ticks():
        at = _y(frame, tick.at)
        parts.append(el("line", class_="coordinate", x1=x - 3, x2=x + 3, y1=at, y2=at))
        parts.append(el("text", cut(tick.label, 21), class_="tick halo", x=x + 7, y=at + 4))
    return join(parts)


def _unset_label(frame: Frame) -> Safe:
    y = frame.height - frame.bottom
    return el("text", "not set", class_="tick halo", x=frame.width - frame.right + 10, y=y + 4)
