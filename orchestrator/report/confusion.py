"""Confusion matrix: what is taken for what, as a table shaded by the share of each true class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.report.figures import figure, scrolling
from orchestrator.report.marks import N_SHADES
from orchestrator.report.markup import Safe, el
from orchestrator.report.wording import cut, percent
from orchestrator.tasks.metrics import Ints

MOST_CLASSES = 16
ROOMY = 4  # classes up to which cells also say the share


@dataclass(frozen=True)
class Confusion:
    """The part of a confusion matrix that is shown: row is the true class."""

    labels: tuple[str, ...]
    counts: Ints  # [K, K]
    supports: Ints  # [K] examples of each shown true class, whatever they were taken for
    n_classes: int


def most_confused(counts: Ints, labels: tuple[str, ...], *, most: int = MOST_CLASSES) -> Confusion:
    """The matrix, or its `most` classes with the most errors in their row and column."""
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    chosen = np.sort(np.argsort(-errors, kind="stable")[:most])
    return Confusion(
        labels=tuple(labels[c] for c in chosen),
        counts=counts[np.ix_(chosen, chosen)],
        supports=counts.sum(axis=1)[chosen],
        n_classes=len(labels),
    )


def confusion_table(counts: Ints, labels: tuple[str, ...], *, split: str) -> Safe:
    """The figure."""
    shown = most_confused(counts, labels)
    note = f"Rows are true classes, columns predictions on {split}. Shade: share of the row."
    if shown.n_classes > len(shown.labels):
        note += f" The {len(shown.labels)} most confused of {shown.n_classes} classes are shown."
    return figure(_title(shown), scrolling(_table(shown), label="Confusion matrix"), note=note)


def _title(shown: Confusion) -> str:
    errors = shown.counts - np.diag(shown.counts.diagonal())
    if not errors.any():
        return "No class is taken for another"
    shares = errors / np.maximum(1, shown.supports)[:, None]
    row, column = np.unravel_index(int(shares.argmax()), shares.shape)
    true, taken = shown.labels[row], shown.labels[column]
    return (
        f"Most confused: {percent(float(shares[row, column]))} of "
        f"“{cut(true, 30)}” taken for “{cut(taken, 30)}”"
    )


def _table(shown: Confusion) -> Safe:
    head = el(
        "tr",
        el("th", el("span", "true ↓  predicted →"), scope="col", class_="corner"),
        *(el("th", el("span", cut(name, 16)), scope="col", title=name) for name in shown.labels),
    )
    rows = [_row(shown, index) for index in range(len(shown.labels))]
    return el(
        "table",
        el("thead", head),
        el("tbody", *rows),
        class_="confusion tilted" if len(shown.labels) > ROOMY else "confusion roomy",
        aria_label="Confusion matrix, counts of examples",
    )


def _row(shown: Confusion, index: int) -> Safe:
    support = max(1, int(shown.supports[index]))
    cells = []
    for column, count in enumerate(shown.counts[index].tolist()):
        share = count / support
        shade = f"q{min(N_SHADES - 1, int(share * N_SHADES))}" if count else "q-none"
        words = f"{shown.labels[index]} taken for {shown.labels[column]}: {percent(share)}"
        cells.append(
            el(
                "td",
                str(count),
                el("span", percent(share), class_="sub") if len(shown.labels) <= ROOMY else "",
                class_=f"{shade} hit" if column == index else shade,
                title=words,
            )
        )
    name = shown.labels[index]
    return el("tr", el("th", cut(name, 22), scope="row", title=name), *cells)
