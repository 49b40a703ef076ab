"""From what a manifest or a folder calls a label to the label itself.

Labels are text: Unicode NFC, without surrounding white space. Numbers keep the digits they were
written with. Two labels that differ only by case stay two, and the audit warns.
"""

from __future__ import annotations

import math
import numbers
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

import numpy as np


class LabelError(ValueError):
    """Why a cell holds no usable label; the reader adds the row and raises DataError."""


def normal_label(text: str) -> str:
    """The canonical form of a label: NFC, stripped."""
    return unicodedata.normalize("NFC", text).strip()


def one_label(cell: object) -> str:
    """The label in the cell of a single-label manifest.

    Raises:
        LabelError: The cell is empty or NaN, or holds several labels.
    """
    if isinstance(cell, (list, tuple, np.ndarray)):
        raise LabelError("a list of labels; use a multilabel task")
    text = _text(cell)
    if not text:
        raise LabelError("no label")
    return text


def many_labels(cell: object, separator: str) -> tuple[str, ...]:
    """The labels in the cell of a multi-label manifest, sorted; an empty cell has none.

    Raises:
        LabelError: The cell is an indicator vector, or a list with an empty element.
    """
    if isinstance(cell, (list, tuple, np.ndarray)):
        pieces = [_text(piece) for piece in cell]
        if len(pieces) > 1 and set(pieces) == {"0", "1"} and len(set(pieces)) < len(pieces):
            raise LabelError("a vector of 0 and 1; write the names of the labels that apply")
        if "" in pieces:
            raise LabelError("an empty label in a list")
        return tuple(sorted(set(pieces)))
    pieces = [normal_label(piece) for piece in _text(cell).split(separator)]
    return tuple(sorted({piece for piece in pieces if piece}))


def differing_by_case(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of labels that are equal once case is folded."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(set(labels)):
        groups[label.casefold()].append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _text(cell: object) -> str:
    """A scalar cell as text; empty for null, NaN and the `nan` that pandas writes."""
    if cell is None:
        return ""
    if isinstance(cell, bool | np.bool_):
        return str(bool(cell)).lower()
    if isinstance(cell, numbers.Real) and not isinstance(cell, numbers.Integral):
        value = float(cell)
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(cell, dict | bytes):
        raise LabelError(f"a {type(cell).__name__}, where text or a number is expected")
    text = normal_label(str(cell))
    return "" if text.casefold() == "nan" else text
