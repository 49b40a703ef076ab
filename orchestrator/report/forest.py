"""Forest plot: the winner, its default and the baseline, each with its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.axes import Frame, svg
from orchestrator.report.comparison import Standing
from orchestrator.report.markup import Safe, el, join
from orchestrator.report.scales import linear_over
from orchestrator.report.wording import score

ROW_HEIGHT = 34.0


def forest(standings: Sequence[Standing], *, metric: str) -> Safe:
    """One row a model and split: the score as a dot, the interval as a line."""
    frame = Frame(
        width=560, height=52 + ROW_HEIGHT * len(standings), left=190, right=56, top=4, bottom=44
    )
    ends = [s.score for s in standings]
    ends += [end for s in standings if s.interval for end in (s.interval.low, s.interval.high)]
    x = linear_over(ends, pad=0.06, most_ticks=5)
    bottom = frame.height - frame.bottom
    parts = []
    for tick in x.ticks():
        at = frame.x(tick.at)
        parts.append(el("line", class_="grid", x1=at, x2=at, y1=frame.top, y2=bottom))
        parts.append(el("text", tick.label, class_="tick middle", x=at, y=bottom + 18))
    right = frame.width - frame.right
    parts.append(
        el(
            "text",
            f"{metric}, 95 % interval →",
            class_="axis-title end",
            x=right,
            y=frame.height - 6,
        )
    )
    for index, standing in enumerate(standings):
        middle = frame.top + ROW_HEIGHT * (index + 0.5)
        parts.append(
            _row(frame, standing, middle, frame.x(x(standing.score)), _ends(frame, x, standing))
        )
    return svg(frame, *parts, alternative=" ".join(map(_spoken, standings)))


def _ends(frame: Frame, x: object, standing: Standing) -> tuple[float, float] | None:
    if standing.interval is None or not callable(x):
        return None
    return frame.x(x(standing.interval.low)), frame.x(x(standing.interval.high))


def _row(
    frame: Frame,
    standing: Standing,
    middle: float,
    at: float,
    ends: tuple[float, float] | None,
) -> Safe:
    class_ = "estimate winner" if standing.name == "Winner" else "estimate"
    parts = [
        el("text", standing.name, class_="row-name", x=0.0, y=middle + 4),
        el("text", standing.split, class_="tick end", x=frame.left - 12, y=middle + 4),
        el("text", score(standing.score), class_="name end", x=frame.width, y=middle + 4),
    ]
    if ends:
        parts.append(el("line", class_=class_, x1=ends[0], x2=ends[1], y1=middle, y2=middle))
    parts.append(el("circle", class_=class_, cx=at, cy=middle, r=5, data_t=standing.trial))
    return join(parts)


def _spoken(standing: Standing) -> str:
    words = f"{standing.name} on {standing.split}: {score(standing.score)}"
    if standing.interval:
        words += f", {score(standing.interval.low)} to {score(standing.interval.high)}"
    return f"{words}."
