"""A Figure: a chart with a title that says what to see, a legend, a caption and its variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.report.markup import Safe, el, join, prose


@dataclass(frozen=True)
class Variant:
    """One choice of axes of a figure."""

    name: str
    drawing: Safe


def figure(
    title: str, *drawings: str, note: str = "", legend: str = "", class_: str | None = None
) -> Safe:
    """A chart with its words. `title` and `note` are our sentences; backticks set code."""
    return el(
        "figure",
        el("h3", prose(title)),
        legend,
        *drawings,
        el("figcaption", prose(note)) if note else "",
        class_=class_,
    )


def variants(choices: Sequence[Variant], *, what: str) -> Safe:
    """All variants of a chart, the first one shown; script.js adds the control to choose.

    Args:
        choices: At least one.
        what: What the control chooses, for its label.
    """
    if len(choices) == 1:
        return choices[0].drawing
    drawn = [
        el("div", choice.drawing, data_variant=choice.name, hidden=None if i == 0 else "hidden")
        for i, choice in enumerate(choices)
    ]
    return el("div", *drawn, class_="variants", data_what=what)


def responsive(draw: Callable[[bool], Safe]) -> Safe:
    """A chart drawn for wide and for narrow pages; style.css shows the one that fits.

    Args:
        draw: Whether the page is wide → the drawing.
    """
    return join(
        [el("div", draw(True), class_="at-wide"), el("div", draw(False), class_="at-narrow")]
    )


def scrolling(content: str, *, label: str, class_: str = "scroll") -> Safe:
    """A wide thing that scrolls by itself, by keyboard too, so that the page never does."""
    return el("div", content, class_=class_, role="region", aria_label=label, tabindex=0)


def section(anchor: str, title: str, *parts: str, lead: str = "") -> Safe:
    """A part of the page that the navigation can name."""
    return el(
        "section",
        el("h2", title, id=f"{anchor}-title"),
        el("p", prose(lead), class_="lead") if lead else "",
        *parts,
        id=anchor,
        aria_labelledby=f"{anchor}-title",
    )


def facts(rows: Sequence[tuple[str, str]], *, label: str) -> Safe:
    """Names and values as a two-column table."""
    body = join(el("tr", el("th", key, scope="row"), el("td", shown)) for key, shown in rows)
    return el("table", el("tbody", body), class_="facts", aria_label=label)
