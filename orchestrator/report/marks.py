"""Marks: the colour and shape of a strategy, and the shade of a score, the same in every chart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.report.markup import Safe, el, join
from orchestrator.report.sweep_view import TrialView
from orchestrator.report.wording import score, strategy_name
from orchestrator.spec.parts import ObjectiveSpec

KNOWN = ("feature-extraction", "partial", "full", "scratch", "zero-shot", "domain-adaptive")
N_SHADES = 9

# Outlines around (0, 0), about equal in area, so that strategies differ without colour too.
OUTLINES = {
    "feature-extraction": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
    "partial": "M-3.6,-3.6h7.2v7.2h-7.2z",
    "full": "M0,-5L4.6,3.4h-9.2z",
    "scratch": "M0,-5L5,0 0,5 -5,0z",
    "zero-shot": "M0,5L4.6,-3.4h-9.2z",
}
OTHER_OUTLINE = "M-1.7,-4.6h3.4v2.9h2.9v3.4h-2.9v2.9h-3.4v-2.9h-2.9v-3.4h2.9z"
CROSS = "M-3.4,-3.4L3.4,3.4M3.4,-3.4L-3.4,3.4"


def strategy_class(strategy: str) -> str:
    """The CSS class that colours a strategy."""
    return f"k{KNOWN.index(strategy)}" if strategy in KNOWN else "k6"


def mark(trial: TrialView, x: float, y: float, *, winner: bool = False) -> Safe:
    """A Trial as a point; script.js finds its details by `data-t`."""
    return el(
        "path",
        class_=f"mark {strategy_class(trial.strategy)}{' winner' if winner else ''}",
        d=OUTLINES.get(trial.strategy, OTHER_OUTLINE),
        transform=f"translate({x:.1f},{y:.1f})",
        data_t=trial.id,
    )


def cross(trial: TrialView, x: float, y: float) -> Safe:
    """A Trial without a score, as a cross."""
    place = f"translate({x:.1f},{y:.1f})"
    return el("path", class_="cross", d=CROSS, transform=place, data_t=trial.id)


def strategy_key(strategies: Iterable[str], *, crosses: bool = False) -> Safe:
    """The legend of strategies."""
    items = [
        el("li", _sample(strategy_class(s), OUTLINES.get(s, OTHER_OUTLINE)), strategy_name(s))
        for s in strategies
    ]
    if crosses:
        items.append(el("li", _sample("cross", CROSS), "no score (diverged or failed)"))
    return el("ul", *items, class_="key")


def _sample(class_: str, outline: str) -> Safe:
    mark_class = class_ if class_ == "cross" else f"mark {class_}"
    drawing = el("path", class_=mark_class, d=outline, transform="translate(7,7)")
    return el("svg", drawing, viewBox="0 0 14 14", width=14, height=14, aria_hidden="true")


@dataclass(frozen=True)
class Shades:
    """From a score to one of nine shades, the best darkest; the worst tenth shares the palest."""

    worst: float
    best: float

    def __call__(self, given: float) -> str:
        width = self.best - self.worst
        fraction = (given - self.worst) / width if width else 1.0
        return f"q{min(N_SHADES - 1, max(0, math.floor(fraction * N_SHADES)))}"

    def key(self, metric: str) -> Safe:
        """The legend of shades."""
        swatches = join(el("i", class_=f"swatch q{i}") for i in range(N_SHADES))
        label = el("span", f"{metric} {score(self.worst)}")
        return el("p", label, el("span", swatches, class_="ramp"), score(self.best), class_="key")


def shades_of(scores: Sequence[float], objective: ObjectiveSpec) -> Shades:
    """The shades that spread these scores."""
    ordered = sorted(scores, reverse=objective.mode == "min")
    return Shades(worst=ordered[len(ordered) // 10], best=ordered[-1])


def spread(index: int) -> float:
    """A fixed, even-looking offset in −0.5 … 0.5 that keeps equal points apart (golden ratio)."""
    return (index * 0.618034) % 1 - 0.5
