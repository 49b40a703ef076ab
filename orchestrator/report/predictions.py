"""Predictions: what a Trial's model said about every example of a split, and what was true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from orchestrator.errors import IntegrityError
from orchestrator.spec.parts import TaskSpec, by_position, is_multilabel
from orchestrator.tasks.annotations import Annotation, from_json
from orchestrator.tasks.metrics import Floats, Ints
from orchestrator.tasks.task import Said, Truth, build_task


@dataclass(frozen=True)
class Basis:
    """How far the probability of what was said falls without `start` … `end - 1` of the text."""

    start: int
    end: int
    fall: float


@dataclass(frozen=True, eq=False)
class Predictions:
    """A model's answers on one split.

    `probs` is what is said and `truth` what is true, as the task has it: of a classification
    probabilities [N, C] and class numbers [N], or 0/1 [N, C] where there are several labels.
    `bases` has the words that some answers rest on, by example.
    """

    split: str
    task: TaskSpec
    examples: Ints
    probs: Said
    truth: Truth
    uris: tuple[str, ...]
    bases: Mapping[int, tuple[Basis, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def multi_label(self) -> bool:
        """Whether any number of labels can be true at once."""
        return is_multilabel(self.task.kind)


def read_predictions(path: Path, *, split: str, task: TaskSpec) -> Predictions | None:
    """The predictions in an Arrow file, or None where there is no file.

    Raises:
        IntegrityError: The file is damaged or does not belong to this task.
    """
    if not path.is_file():
        return None
    try:
        with pa.OSFile(str(path)) as source:
            table = ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError) as err:
        raise IntegrityError(f"{path.name} is not a readable Arrow file: {err}.") from err
    pointing = by_position(task.kind)
    true = {"text", "annotation"} if pointing else {"target"}
    absent = ({"example", "prob", "uri"} | true) - set(table.column_names)
    if absent:
        raise IntegrityError(f"{path.name} lacks the columns {sorted(absent)}.")
    truth: Truth
    said: Said
    if pointing:
        truth = _annotations(table, name=path.name)
        said = _said(table["prob"], truth, task=task, name=path.name)
    else:
        truth = _truth(table["target"], task=task, name=path.name)
        said = _probs(table["prob"], n_labels=len(task.labels), name=path.name)
    return Predictions(
        split=split,
        task=task,
        examples=table["example"].to_numpy().astype(np.int64),
        probs=said,
        truth=truth,
        uris=tuple(str(uri) if uri is not None else "" for uri in table["uri"].to_pylist()),
        bases=_bases(table, name=path.name),
    )


def _bases(table: Any, *, name: str) -> dict[int, tuple[Basis, ...]]:
    if "basis" not in table.column_names:
        return {}
    pairs = zip(table["example"].to_pylist(), table["basis"].to_pylist(), strict=True)
    try:
        return {
            int(example): tuple(Basis(s["start"], s["end"], float(s["score"])) for s in spans)
            for example, spans in pairs
            if spans
        }
    except (KeyError, TypeError, ValueError) as err:
        raise IntegrityError(f"{name} has a basis that cannot be read: {err}.") from err


def _annotations(table: Any, *, name: str) -> list[Annotation]:
    columns = (table["text"].to_pylist(), table["annotation"].to_pylist())
    try:
        return [from_json(text, content) for text, content in zip(*columns, strict=True)]
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise IntegrityError(f"{name} has an annotation that cannot be read: {err}.") from err


def _said(column: Any, truth: Sequence[Annotation], *, task: TaskSpec, name: str) -> list[Floats]:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    try:
        found: list[Floats] = build_task(task).unpacked(flat, truth)
    except ValueError as err:
        raise IntegrityError(f"{name} does not have what is said of each text: {err}.") from err
    return found


def _probs(column: Any, *, n_labels: int, name: str) -> Floats:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    if flat.size != len(column) * n_labels or not np.isfinite(flat).all():
        raise IntegrityError(f"{name} has no {n_labels} finite probabilities for each example.")
    probs: Floats = flat.reshape(len(column), n_labels)
    return probs


def _truth(column: Any, *, task: TaskSpec, name: str) -> Ints:
    chosen = column.to_pylist()
    flat = [c for classes in chosen for c in classes]
    if any(not 0 <= c < len(task.labels) for c in flat):
        raise IntegrityError(f"{name} has a class number outside 0–{len(task.labels) - 1}.")
    if is_multilabel(task.kind):
        truth = np.zeros((len(chosen), len(task.labels)), np.int64)
        for row, classes in enumerate(chosen):
            truth[row, classes] = 1
        return truth
    if any(len(classes) != 1 for classes in chosen):
        raise IntegrityError(f"{name} has an example without exactly one label.")
    return np.asarray(flat, np.int64)
