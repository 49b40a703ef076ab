"""Reliability diagram: whether a confidence of 80 % is right 80 % of the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.report.axes import Frame, axes, svg
from orchestrator.report.figures import figure
from orchestrator.report.markup import Safe, el, join
from orchestrator.report.scales import Linear
from orchestrator.report.wording import score
from orchestrator.tasks.metrics import ECE_BINS

Bins = Sequence[Mapping[str, float]]

FRAME = Frame(width=460, height=400, left=52, right=20, top=34, bottom=84)
HISTOGRAM = 30.0


def reliability(bins: Bins, *, split: str, multi_label: bool, unit: str = "examples") -> Safe:
    """The figure.

    Args:
        bins: As `Task.details` gives them.
        split: The split's name.
        multi_label: Whether bins are over labels' probabilities rather than the top answer's.
        unit: What the bins count.
    """
    total = sum(row["count"] for row in bins)
    if not total:
        return Safe("")
    error = sum(abs(row["accuracy"] - row["confidence"]) * row["count"] for row in bins) / total
    lean = sum((row["confidence"] - row["accuracy"]) * row["count"] for row in bins) / total
    what = "label probabilities" if multi_label else "the answer's probability"
    note = (
        f"Each dot is one of {ECE_BINS} bins of {what} on {split}; on the diagonal, confidence "
        f"is honest. The bars below count the {unit}. ECE is the mean gap by count."
    )
    return figure(_title(error, lean), _drawing(bins, total, error), note=note)


def _title(error: float, lean: float) -> str:
    shown = f"ECE {score(error)}"
    if abs(lean) < 0.02:
        return f"Confidence is honest on average ({shown})"
    way = "Over" if lean > 0 else "Under"
    return f"{way}-confident by {100 * abs(lean):.0f} points on average ({shown})"


def _drawing(bins: Bins, total: float, error: float) -> Safe:
    unit = Linear(0.0, 1.0, most_ticks=5)
    points = [(FRAME.x(row["confidence"]), FRAME.y(row["accuracy"])) for row in bins]
    gaps = [
        el("line", class_="gap", x1=x, x2=x, y1=FRAME.y(row["confidence"]), y2=y)
        for row, (x, y) in zip(bins, points, strict=True)
    ]
    dots = [
        el("circle", class_="dot", cx=x, cy=y, r=3.0 + 4.0 * (row["count"] / total) ** 0.5)
        for row, (x, y) in zip(bins, points, strict=True)
    ]
    spoken = "; ".join(
        f"confidence {row['confidence']:.2f}, right {row['accuracy']:.2f}, n {row['count']:.0f}"
        for row in bins
    )
    return svg(
        FRAME,
        axes(FRAME, unit, unit, x_title="confidence", y_title="share that is right"),
        el("path", class_="diagonal", d=f"M{FRAME.x(0)},{FRAME.y(0)}L{FRAME.x(1)},{FRAME.y(1)}"),
        *gaps,
        el(
            "path",
            class_="curve bins",
            d="M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points),
        ),
        *dots,
        _histogram(bins),
        alternative=f"Reliability diagram, ECE {score(error)}: {spoken}.",
    )


def _histogram(bins: Bins) -> Safe:
    top = FRAME.height - FRAME.bottom + 28
    most = max(row["count"] for row in bins)
    width = (FRAME.x(1) - FRAME.x(0)) / ECE_BINS
    bars = []
    for row in bins:
        height = HISTOGRAM * row["count"] / most
        left = FRAME.x(min(ECE_BINS - 1, int(row["confidence"] * ECE_BINS)) / ECE_BINS)
        bars.append(
            el(
                "rect",
                class_="bar",
                x=left + 1,
                y=top + HISTOGRAM - height,
                width=width - 2,
                height=height,
            )
        )
    return join(bars)
