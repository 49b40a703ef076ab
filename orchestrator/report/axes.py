"""The frame of a chart: where its plot area lies, its grid, tick labels and axis titles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.report.markup import Safe, el, join
from orchestrator.report.scales import Scale
from orchestrator.report.wording import cut


@dataclass(frozen=True)
class Frame:
    """A chart's size and margins in CSS pixels at full width."""

    width: float = 540
    height: float = 330
    left: float = 52
    right: float = 20
    top: float = 34
    bottom: float = 46

    def x(self, fraction: float) -> float:
        """A place of the horizontal scale, in pixels."""
        return self.left + fraction * (self.width - self.left - self.right)

    def y(self, fraction: float) -> float:
        """A place of the vertical scale, in pixels; 1 is at the top."""
        return self.height - self.bottom - fraction * (self.height - self.top - self.bottom)


def svg(frame: Frame, *children: str, alternative: str, class_: str | None = None) -> Safe:
    """The drawing, with the sentence that stands for it where it cannot be seen."""
    return el(
        "svg",
        *children,
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="img",
        aria_label=alternative,
        class_=class_,
    )


def axes(
    frame: Frame, x: Scale, y: Scale, *, x_title: str, y_title: str, longest: int = 14
) -> Safe:
    """Grid, tick labels and titles of both axes; the arrows show where values grow."""
    return join(
        [
            y_axis(frame, y, title=y_title),
            *_x_ticks(frame, x, longest),
            el(
                "text",
                f"{x_title} →",
                class_="axis-title end",
                x=frame.width - frame.right,
                y=frame.height - 6,
            ),
        ]
    )


def y_axis(frame: Frame, y: Scale, *, title: str) -> Safe:
    """Horizontal grid lines with their labels, and the title above them."""
    right = frame.width - frame.right
    parts = [el("text", f"↑ {title}", class_="axis-title", x=4.0, y=14.0)]
    for tick in y.ticks():
        at = frame.y(tick.at)
        parts.append(el("line", class_="grid", x1=frame.left, x2=right, y1=at, y2=at))
        parts.append(el("text", tick.label, class_="tick end", x=frame.left - 8, y=at + 4))
    return join(parts)


def _x_ticks(frame: Frame, x: Scale, longest: int) -> Iterable[Safe]:
    bottom = frame.height - frame.bottom
    yield el(
        "line", class_="base", x1=frame.left, x2=frame.width - frame.right, y1=bottom, y2=bottom
    )
    for tick in x.ticks():
        at = frame.x(tick.at)
        label = cut(tick.label, longest)
        yield el("line", class_="base", x1=at, x2=at, y1=bottom, y2=bottom + 4)
        yield el("text", label, class_="tick middle", x=at, y=bottom + 18)
