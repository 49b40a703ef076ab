"""A Task at work: logits to probabilities, probabilities to metrics and answers. No torch.

What a model says of N examples, and what is true of them, has a form of each task's own: for
classification probabilities [N, C] and class numbers, for tasks that answer for every token a list
with something for each example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, assert_never

import numpy as np

from orchestrator.spec.parts import Metric, TaskSpec
from orchestrator.tasks.metrics import (
    Floats,
    Ints,
    confusion_matrix,
    multi_label_metrics,
    per_class_rows,
    reliability_bins,
    single_label_metrics,
    soft_max,
)
from orchestrator.tasks.question_answering import QuestionAnswering
from orchestrator.tasks.token_classification import TokenClassification

Said = Any
Truth = Any


class Task(Protocol):
    """What training, evaluation and serving need to know about what is predicted."""

    share: ClassVar[Metric | None]  # the metric that is the share of examples that are `correct`

    @property
    def spec(self) -> TaskSpec:
        """Kind and labels."""

    @property
    def n_outputs(self) -> int:
        """Width of the head's last layer."""

    def probabilities(self, logits: Floats) -> Floats:
        """Logits [..., C] to what answers are made of: probabilities, where there are any."""

    def metrics(self, said: Said, truth: Truth) -> dict[str, float]:
        """The scalar metrics, all finite, higher or lower better as their names say."""

    def details(self, said: Said, truth: Truth) -> dict[str, Any]:
        """Per-class table, confusion matrix and reliability bins, as plain JSON types."""

    def correct(self, said: Said, truth: Truth) -> Ints:
        """Whether each example is answered wholly right: 0/1 [N]."""

    def answer(self, said: Any, *, top: int, of: Any = None) -> dict[str, Any]:
        """What is said of one example, as a caller is told.

        Args:
            said: Of it.
            top: How many of the likeliest labels or answers are told.
            of: The text itself, where answers point into it.
        """

    def packed(self, said: Said) -> Floats:
        """What is said of all examples as one array, to be kept."""

    def unpacked(self, array: Floats, truth: Truth) -> Said:
        """What `packed` took."""


class _OnceAnExample:
    """What is said is probabilities [N, C]: they are kept as they are."""

    share: ClassVar[Metric | None] = "accuracy"

    def packed(self, said: Floats) -> Floats:
        return said

    def unpacked(self, array: Floats, truth: Ints) -> Floats:
        return array


@dataclass(frozen=True)
class SingleLabel(_OnceAnExample):
    """Exactly one of C labels; softmax. Targets are class numbers [N]."""

    spec: TaskSpec

    @property
    def n_outputs(self) -> int:
        return len(self.spec.outputs)

    def probabilities(self, logits: Floats) -> Floats:
        return soft_max(logits)

    def metrics(self, said: Floats, truth: Ints) -> dict[str, float]:
        return single_label_metrics(said.astype(np.float64), truth)

    def details(self, said: Floats, truth: Ints) -> dict[str, Any]:
        eye = np.eye(self.n_outputs, dtype=np.int64)
        predicted = said.argmax(axis=1)
        return {
            "per_class": per_class_rows(eye[predicted], eye[truth], said, self.spec.labels),
            "confusion": confusion_matrix(predicted, truth, self.n_outputs).tolist(),
            "reliability": reliability_bins(said.max(axis=1), predicted == truth),
        }

    def correct(self, said: Floats, truth: Ints) -> Ints:
        hits: Ints = (said.argmax(axis=1) == truth).astype(np.int64)
        return hits

    def answer(self, said: Floats, *, top: int, of: Any = None) -> dict[str, Any]:
        order = np.argsort(-said, kind="stable")[:top]
        return {
            "label": self.spec.labels[int(order[0])],
            "probabilities": {self.spec.labels[int(c)]: float(said[c]) for c in order},
        }


@dataclass(frozen=True)
class MultiLabel(_OnceAnExample):
    """Any subset of C labels; a sigmoid each. Targets are 0/1 [N, C]."""

    spec: TaskSpec
    threshold: float = 0.5

    @property
    def n_outputs(self) -> int:
        return len(self.spec.outputs)

    def probabilities(self, logits: Floats) -> Floats:
        small = np.exp(-np.abs(logits))  # in (0, 1]: no overflow, and no rare label tied at 0
        probs: Floats = np.where(logits >= 0, 1, small) / (1 + small)
        return probs

    def metrics(self, said: Floats, truth: Ints) -> dict[str, float]:
        return multi_label_metrics(said.astype(np.float64), truth)

    def details(self, said: Floats, truth: Ints) -> dict[str, Any]:
        predicted = (said >= self.threshold).astype(np.int64)
        true = truth.astype(np.int64)
        return {
            "per_class": per_class_rows(predicted, true, said, self.spec.labels),
            "confusion": None,
            "reliability": reliability_bins(said.ravel(), true.ravel().astype(bool)),
        }

    def correct(self, said: Floats, truth: Ints) -> Ints:
        hits: Ints = ((said >= self.threshold) == (truth == 1)).all(axis=1).astype(np.int64)
        return hits

    def answer(self, said: Floats, *, top: int, of: Any = None) -> dict[str, Any]:
        order = np.argsort(-said, kind="stable")
        return {
            "labels": [self.spec.labels[int(c)] for c in order if said[c] >= self.threshold],
            "probabilities": {self.spec.labels[int(c)]: float(said[c]) for c in order[:top]},
        }


def build_task(spec: TaskSpec) -> Task:
    """The Task that `spec` describes."""
    match spec.kind:
        case "image-classification" | "text-classification" | "zero-shot-image-classification":
            return SingleLabel(spec)
        case "image-multilabel-classification" | "text-multilabel-classification":
            return MultiLabel(spec)
        case "token-classification":
            return TokenClassification(spec)
        case "question-answering":
            return QuestionAnswering(spec)
        case _:
            assert_never(spec.kind)
