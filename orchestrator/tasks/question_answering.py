"""Extractive question answering: the span of a context that answers a question. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from orchestrator.spec.parts import Metric, TaskSpec
from orchestrator.tasks.annotations import Question
from orchestrator.tasks.metrics import Floats, Ints, reliability_bins
from orchestrator.tasks.squad import exact_match, f1_span

ANSWER, NO_ANSWER = "answer", "no answer"
N_BEST = 20  # starts and ends that are paired, of each window
MOST_TOKENS = 30  # of an answer
ALTERNATIVES = 5  # spans that are kept of each question
NOWHERE = -1.0  # where "no answer" starts and ends


@dataclass(frozen=True)
class Window:
    """A part of a context as the network saw it, and what it said.

    `starts` and `ends` are the logits float [L] of its tokens; `spans` int64 [L, 2] their
    characters in the context; `nothing` is the sum of the logits at the first token, which stands
    for no answer.
    """

    starts: Floats
    ends: Floats
    spans: Ints
    nothing: float


@dataclass(frozen=True)
class QuestionAnswering:
    """The likeliest span; with the label `no answer`, or that there is none.

    What is said of a question is float [ALTERNATIVES, 3]: start, end and score of its best spans,
    the best first; start and end are characters of the context, NOWHERE for no answer; the score is
    a softmax over the N_BEST best. Where there are fewer spans, the rows that are left score 0.
    """

    share: ClassVar[Metric | None] = "exact_match"

    spec: TaskSpec

    @property
    def n_outputs(self) -> int:
        return len(self.spec.outputs)

    @property
    def may_have_none(self) -> bool:
        """Whether a question may have no answer."""
        return NO_ANSWER in self.spec.labels

    def probabilities(self, logits: Floats) -> Floats:
        """The logits themselves: they are comparable between the windows of a context."""
        return logits

    def spans(self, windows: Sequence[Window], *, n: int = ALTERNATIVES) -> Floats:
        """The best spans of a context, of all its windows: float64 [n, 3].

        A span ends where it starts or later, has at most MOST_TOKENS tokens and lies in the
        context, as in the scripts that come with BERT (Devlin et al., NAACL 2019).
        """
        best: dict[tuple[int, int], float] = {}
        for window in windows:
            for span, score in _paired(window):
                best[span] = max(score, best.get(span, -np.inf))
        if self.may_have_none or not best:
            nowhere = (int(NOWHERE), int(NOWHERE))
            best[nowhere] = min((window.nothing for window in windows), default=0.0)
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[: max(n, N_BEST)]
        scores = np.array([score for _, score in ranked])
        probs = np.exp(scores - scores.max())
        probs /= probs.sum()
        found = np.zeros((n, 3))
        found[:, :2] = NOWHERE
        for row, ((span, _), prob) in enumerate(zip(ranked[:n], probs, strict=False)):
            found[row] = (*span, prob)
        return found

    def metrics(self, said: Sequence[Floats], truth: Sequence[Question]) -> dict[str, float]:
        """SQuAD's two, as shares of 1."""
        scores = self._scores(said, truth)
        return {"exact_match": float(scores[:, 0].mean()), "f1_span": float(scores[:, 1].mean())}

    def details(self, said: Sequence[Floats], truth: Sequence[Question]) -> dict[str, Any]:
        """EM and F1 of the questions with an answer and of those without; no confusion."""
        scores = self._scores(said, truth)
        answered = np.array([bool(question.answers) for question in truth])
        rows = []
        for label in self.spec.labels:
            chosen = answered if label == ANSWER else ~answered
            exact, f1 = scores[chosen].mean(axis=0) if chosen.any() else (0.0, 0.0)
            rows.append(
                {
                    "label": label,
                    "exact_match": float(exact),
                    "f1": float(f1),
                    "support": int(chosen.sum()),
                }
            )
        confidence = np.array([spans[0, 2] for spans in said])
        return {
            "per_class": rows,
            "confusion": None,
            "reliability": reliability_bins(confidence, scores[:, 0] == 1),
        }

    def correct(self, said: Sequence[Floats], truth: Sequence[Question]) -> Ints:
        """Whether the answer matches a true one exactly."""
        hits: Ints = self._scores(said, truth)[:, 0].astype(np.int64)
        return hits

    def answer(self, said: Floats, *, top: int, of: Any = None) -> dict[str, Any]:
        """The best answer, and what else it could have been; an empty one where there is none."""
        given = [_told(row, of) for row in said[:top] if row[2] > 0]
        return {**given[0], "alternatives": given[1:]}

    def scorer(
        self, said: Sequence[Floats], truth: Sequence[Question], metric: Metric
    ) -> Callable[[Ints], float] | None:
        """A metric as a function of the chosen questions."""
        if metric not in ("exact_match", "f1_span"):
            return None
        scores = self._scores(said, truth)[:, int(metric == "f1_span")]
        return lambda rows: float(scores[rows].mean())

    def packed(self, said: Sequence[Floats]) -> Floats:
        """What is said of all questions as one array [N, 3 ALTERNATIVES]."""
        rows: Floats = np.stack([spans.ravel() for spans in said]).astype(np.float32)
        return rows

    def unpacked(self, array: Floats, truth: Sequence[Question]) -> list[Floats]:
        """What `packed` took, question by question."""
        return list(array.reshape(len(truth), -1, 3))

    def _scores(self, said: Sequence[Floats], truth: Sequence[Question]) -> Floats:
        """Exact match and F1 of each question: float64 [N, 2]."""
        scores = np.zeros((len(truth), 2))
        for row, (spans, question) in enumerate(zip(said, truth, strict=True)):
            answer = text_of(spans[0], question.context)
            right = [answer.text for answer in question.answers]
            scores[row] = exact_match(answer, right), f1_span(answer, right)
        return scores


def text_of(span: Floats, context: str) -> str:
    """The text of one row of what is said; empty for no answer."""
    return "" if span[0] < 0 else context[int(span[0]) : int(span[1])]


def _told(row: Floats, of: Question) -> dict[str, Any]:
    start, end = (int(row[0]), int(row[1])) if row[0] >= 0 else (None, None)
    return {"answer": text_of(row, of.context), "start": start, "end": end, "score": float(row[2])}


def _paired(window: Window) -> list[tuple[tuple[int, int], float]]:
    """The spans of a window's best starts and ends with their scores."""
    starts = np.argsort(-window.starts, kind="stable")[:N_BEST]
    ends = np.argsort(-window.ends, kind="stable")[:N_BEST]
    length = ends[None] - starts[:, None]
    pairs = np.argwhere((length >= 0) & (length < MOST_TOKENS))
    return [
        (
            (int(window.spans[starts[i], 0]), int(window.spans[ends[j], 1])),
            float(window.starts[starts[i]] + window.ends[ends[j]]),
        )
        for i, j in pairs
    ]
