"""Token classification: a tag for every word, entities out of tags. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from orchestrator.spec.parts import Metric, TaskSpec
from orchestrator.tasks.annotations import TaggedText
from orchestrator.tasks.metrics import (
    Floats,
    Ints,
    confusion_matrix,
    expected_calibration_error,
    reliability_bins,
    soft_max,
)
from orchestrator.tasks.tags import OUTSIDE

_TINY = 1e-7
_HITS, _PREDICTED, _TRUE = range(3)


@dataclass(frozen=True)
class Entity:
    """Words `first` … `last` of a text and what they name."""

    kind: str
    first: int
    last: int


@dataclass(frozen=True)
class TokenClassification:
    """One tag of K kinds of entity for every word, in IOB2; softmax over 2 K + 1 outputs.

    What is said of a text are probabilities [words, outputs]; what is true of it, a `TaggedText`.
    """

    share: ClassVar[Metric | None] = None

    spec: TaskSpec

    @property
    def n_outputs(self) -> int:
        return len(self.spec.outputs)

    def probabilities(self, logits: Floats) -> Floats:
        return soft_max(logits)

    def metrics(self, said: Sequence[Floats], truth: Sequence[TaggedText]) -> dict[str, float]:
        """Entities by precision, recall and F1; words by accuracy, log_loss and ece.

        An entity counts as found when its kind, first and last word are right. What is predicted is
        read as `entities` answers it; what is true, by seqeval's strict reading of IOB2.
        """
        counts = self.entity_counts(said, truth).sum(axis=(0, 1))
        probs, targets = self._words(said, truth)
        words: dict[str, float] = {}
        if len(targets):
            hits, losses = _judged(probs, targets)
            words = {
                "accuracy": float(hits.mean()),
                "log_loss": float(losses.mean()),
                "ece": expected_calibration_error(probs.max(axis=1), hits),
            }
        return {
            "f1_entity": _ratio(2 * counts[_HITS], counts[_PREDICTED] + counts[_TRUE]),
            "precision_entity": _ratio(counts[_HITS], counts[_PREDICTED]),
            "recall_entity": _ratio(counts[_HITS], counts[_TRUE]),
            **words,
        }

    def details(self, said: Sequence[Floats], truth: Sequence[TaggedText]) -> dict[str, Any]:
        """A row for each kind of entity; the confusion of words is by kind."""
        probs, targets = self._words(said, truth)
        predicted = probs.argmax(axis=1)
        rows = []
        for label, counts in zip(
            self.spec.labels, self.entity_counts(said, truth).sum(axis=0), strict=True
        ):
            rows.append(
                {
                    "label": label,
                    "precision": _ratio(counts[_HITS], counts[_PREDICTED]),
                    "recall": _ratio(counts[_HITS], counts[_TRUE]),
                    "f1": _ratio(2 * counts[_HITS], counts[_PREDICTED] + counts[_TRUE]),
                    "support": int(counts[_TRUE]),
                }
            )
        by_kind = confusion_matrix(
            (predicted + 1) // 2, (targets + 1) // 2, len(self.spec.labels) + 1
        )
        return {
            "per_class": rows,
            "confusion": by_kind.tolist(),
            "confusion_labels": ["no entity", *self.spec.labels],
            "reliability": reliability_bins(probs.max(axis=1), predicted == targets),
        }

    def correct(self, said: Sequence[Floats], truth: Sequence[TaggedText]) -> Ints:
        """Whether all entities of a text are found, and nothing else."""
        counts = self.entity_counts(said, truth).sum(axis=1)
        hits: Ints = (counts == counts[:, :1]).all(axis=1).astype(np.int64)
        return hits

    def answer(self, said: Floats, *, top: int, of: Any = None) -> dict[str, Any]:
        """The entities in a text; `top` is for tasks with alternatives."""
        return {
            "entities": [
                {
                    "label": entity.kind,
                    "start": of.words[entity.first][0],
                    "end": of.words[entity.last][1],
                    "text": of.text[of.words[entity.first][0] : of.words[entity.last][1]],
                    "score": score,
                }
                for entity, score in self.entities(said)
            ]
        }

    def entities(self, said: Floats) -> list[tuple[Entity, float]]:
        """The entities in a text, each with the mean probability of its words' tags.

        An I- that follows nothing of its kind begins an entity.
        """
        found: list[tuple[Entity, list[float]]] = []
        before = ""
        for word, probs in enumerate(said):
            tag = self.spec.outputs[int(probs.argmax())]
            kind, score = tag[2:], float(probs.max())
            if tag == OUTSIDE:
                pass
            elif tag.startswith("I") and kind == before:
                entity, scores = found[-1]
                found[-1] = (Entity(kind, entity.first, word), [*scores, score])
            else:
                found.append((Entity(kind, word, word), [score]))
            before = kind
        return [(entity, float(np.mean(scores))) for entity, scores in found]

    def scorer(
        self, said: Sequence[Floats], truth: Sequence[TaggedText], metric: Metric
    ) -> Callable[[Ints], float] | None:
        """A metric as a function of the chosen texts; None for the calibration error."""
        if metric in ("accuracy", "log_loss"):
            hits, losses = _judged(*self._words(said, truth))
            of_word = hits if metric == "accuracy" else losses
            lengths = np.array([len(text.words) for text in truth])
            of_text = np.bincount(
                np.repeat(np.arange(len(truth)), lengths), of_word, minlength=len(truth)
            )
            return lambda rows: _ratio(of_text[rows].sum(), lengths[rows].sum())
        counts = self.entity_counts(said, truth).sum(axis=1)

        def score(rows: Ints) -> float:
            hits, predicted, true = counts[rows].sum(axis=0)
            if metric == "f1_entity":
                return _ratio(2 * hits, predicted + true)
            return _ratio(hits, predicted if metric == "precision_entity" else true)

        return score if metric in ("f1_entity", "precision_entity", "recall_entity") else None

    def entity_counts(self, said: Sequence[Floats], truth: Sequence[TaggedText]) -> Ints:
        """Entities of each text and kind, int64 [N, K, 3]: found rightly, predicted, true."""
        predicted = [
            {(entity.kind, entity.first, entity.last + 1) for entity, _ in self.entities(probs)}
            for probs in said
        ]
        true = _strict([text.tags for text in truth])
        number = {label: k for k, label in enumerate(self.spec.labels)}
        counts = np.zeros((len(truth), len(number), 3), np.int64)
        for row, (ours, theirs) in enumerate(zip(predicted, true, strict=True)):
            for which, entities in ((_HITS, ours & theirs), (_PREDICTED, ours), (_TRUE, theirs)):
                for kind, _, _ in entities:
                    counts[row, number[kind], which] += 1
        return counts

    def packed(self, said: Sequence[Floats]) -> Floats:
        """What is said of all texts as one array [words, outputs]."""
        empty = np.empty((0, self.n_outputs), np.float32)
        rows: Floats = np.concatenate([empty, *said]).astype(np.float32)
        return rows

    def unpacked(self, array: Floats, truth: Sequence[TaggedText]) -> list[Floats]:
        """What `packed` took, text by text."""
        flat = array.reshape(-1, self.n_outputs)
        return np.split(flat, np.cumsum([len(text.words) for text in truth])[:-1])

    def _words(self, said: Sequence[Floats], truth: Sequence[TaggedText]) -> tuple[Floats, Ints]:
        number = {tag: i for i, tag in enumerate(self.spec.outputs)}
        targets = np.array([number[tag] for text in truth for tag in text.tags], np.int64)
        return self.packed(said).astype(np.float64), targets


def _judged(probs: Floats, targets: Ints) -> tuple[NDArray[np.bool_], Floats]:
    """Of each word, whether its likeliest tag is right, and the log-loss."""
    right = np.clip(probs[np.arange(len(targets)), targets], _TINY, 1)
    return probs.argmax(axis=1) == targets, -np.log(right)


def _strict(tags: list[tuple[str, ...]]) -> list[set[tuple[str, int, int]]]:
    from seqeval.scheme import IOB2, Entities

    found = Entities([list(of_text) for of_text in tags], scheme=IOB2)
    return [{(e.tag, e.start, e.end) for e in entities} for entities in found.entities]


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else 0.0
