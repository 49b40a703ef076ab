"""Predictions: what a Trial's model said about every example of a split, and what was true."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from orchestrator.errors import IntegrityError
from orchestrator.spec.parts import TaskSpec, is_multilabel
from orchestrator.tasks.metrics import Floats, Ints


@dataclass(frozen=True, eq=False)
class Predictions:
    """A model's answers on one split.

    `probs` is [N, C]; `truth` is class numbers [N], or 0/1 [N, C] for a multi-label task.
    """

    split: str
    task: TaskSpec
    examples: Ints
    probs: Floats
    truth: Ints
    uris: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def multi_label(self) -> bool:
        """Whether any number of labels can be true at once."""
        return self.truth.ndim == 2


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
    absent = {"example", "prob", "target", "uri"} - set(table.column_names)
    if absent:
        raise IntegrityError(f"{path.name} lacks the columns {sorted(absent)}.")
    return Predictions(
        split=split,
        task=task,
        examples=table["example"].to_numpy().astype(np.int64),
        probs=_probs(table["prob"], n_labels=len(task.labels), name=path.name),
        truth=_truth(table["target"], task=task, name=path.name),
        uris=tuple(str(uri) if uri is not None else "" for uri in table["uri"].to_pylist()),
    )


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
