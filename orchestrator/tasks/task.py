"""A Task at work: logits to probabilities, probabilities to metrics and answers. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, assert_never

import numpy as np

from orchestrator.spec.parts import TaskSpec
from orchestrator.tasks.metrics import (
    Floats,
    Ints,
    confusion_matrix,
    multi_label_metrics,
    per_class_rows,
    reliability_bins,
    single_label_metrics,
)


class Task(Protocol):
    """What training, evaluation and serving need to know about what is predicted."""

    @property
    def spec(self) -> TaskSpec:
        """Kind and labels."""

    @property
    def n_outputs(self) -> int:
        """Width of the head's last layer."""

    def probabilities(self, logits: Floats) -> Floats:
        """Logits [N, C] to probabilities [N, C]."""

    def metrics(self, probs: Floats, targets: Ints) -> dict[str, float]:
        """The scalar metrics, all finite, higher or lower better as their names say."""

    def details(self, probs: Floats, targets: Ints) -> dict[str, Any]:
        """Per-class table, confusion matrix and reliability bins, as plain JSON types."""

    def correct(self, probs: Floats, targets: Ints) -> Ints:
        """Whether each example is answered wholly right: 0/1 [N]."""

    def answer(self, probs: Floats, *, top: int) -> dict[str, Any]:
        """One example's probabilities [C] as what a caller is told."""


@dataclass(frozen=True)
class SingleLabel:
    """Exactly one of C labels; softmax. Targets are class numbers [N]."""

    spec: TaskSpec

    @property
    def n_outputs(self) -> int:
        return len(self.spec.labels)

    def probabilities(self, logits: Floats) -> Floats:
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs: Floats = shifted / shifted.sum(axis=1, keepdims=True)
        return probs

    def metrics(self, probs: Floats, targets: Ints) -> dict[str, float]:
        return single_label_metrics(probs, targets)

    def details(self, probs: Floats, targets: Ints) -> dict[str, Any]:
        eye = np.eye(self.n_outputs, dtype=np.int64)
        predicted = probs.argmax(axis=1)
        return {
            "per_class": per_class_rows(eye[predicted], eye[targets], probs, self.spec.labels),
            "confusion": confusion_matrix(predicted, targets, self.n_outputs).tolist(),
            "reliability": reliability_bins(probs.max(axis=1), predicted == targets),
        }

    def correct(self, probs: Floats, targets: Ints) -> Ints:
        hits: Ints = (probs.argmax(axis=1) == targets).astype(np.int64)
        return hits

    def answer(self, probs: Floats, *, top: int) -> dict[str, Any]:
        order = np.argsort(-probs, kind="stable")[:top]
        return {
            "label": self.spec.labels[int(order[0])],
            "probabilities": {self.spec.labels[int(c)]: float(probs[c]) for c in order},
        }


@dataclass(frozen=True)
class MultiLabel:
    """Any subset of C labels; a sigmoid each. Targets are 0/1 [N, C]."""

    spec: TaskSpec
    threshold: float = 0.5

    @property
    def n_outputs(self) -> int:
        return len(self.spec.labels)

    def probabilities(self, logits: Floats) -> Floats:
        small = np.exp(-np.abs(logits))  # in (0, 1]: no overflow, and no rare label tied at 0
        probs: Floats = np.where(logits >= 0, 1, small) / (1 + small)
        return probs

    def metrics(self, probs: Floats, targets: Ints) -> dict[str, float]:
        return multi_label_metrics(probs, targets)

    def details(self, probs: Floats, targets: Ints) -> dict[str, Any]:
        predicted = (probs >= self.threshold).astype(np.int64)
        truth = targets.astype(np.int64)
        return {
            "per_class": per_class_rows(predicted, truth, probs, self.spec.labels),
            "confusion": None,
            "reliability": reliability_bins(probs.ravel(), truth.ravel().astype(bool)),
        }

    def correct(self, probs: Floats, targets: Ints) -> Ints:
        hits: Ints = ((probs >= self.threshold) == (targets == 1)).all(axis=1).astype(np.int64)
        return hits

    def answer(self, probs: Floats, *, top: int) -> dict[str, Any]:
        order = np.argsort(-probs, kind="stable")
        return {
            "labels": [self.spec.labels[int(c)] for c in order if probs[c] >= self.threshold],
            "probabilities": {self.spec.labels[int(c)]: float(probs[c]) for c in order[:top]},
        }


def build_task(spec: TaskSpec) -> Task:
    """The Task that `spec` describes."""
    match spec.kind:
        case "image-classification" | "text-classification" | "zero-shot-image-classification":
            return SingleLabel(spec)
        case "image-multilabel-classification" | "text-multilabel-classification":
            return MultiLabel(spec)
        case _:
            assert_never(spec.kind)
