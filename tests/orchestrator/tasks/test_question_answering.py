"""The span of a context that answers: from the logits of its windows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from orchestrator.spec.parts import TaskSpec
from orchestrator.tasks.annotations import Answer, Question
from orchestrator.tasks.question_answering import (
    ALTERNATIVES,
    ANSWER,
    MOST_TOKENS,
    NO_ANSWER,
    QuestionAnswering,
    Window,
)

ALWAYS = QuestionAnswering(TaskSpec(kind="question-answering", labels=(ANSWER,)))
SOMETIMES = QuestionAnswering(TaskSpec(kind="question-answering", labels=(ANSWER, NO_ANSWER)))


def window(starts: list[float], ends: list[float], *, first: int = 0, nothing: float = 0) -> Window:
    """Tokens of three characters, a space between them, from token `first` of the context on."""
    at = 4 * (first + np.arange(len(starts)))
    return Window(np.array(starts), np.array(ends), np.stack([at, at + 3], axis=1), nothing)


def drawn(n: int, seed: int, first: int = 0) -> Window:
    rng = np.random.default_rng(seed)
    return window(list(rng.normal(size=n)), list(rng.normal(size=n)), first=first)


def test_the_best_span_is_that_of_an_exhaustive_search() -> None:
    for seed in range(20):
        seen = drawn(15, seed)
        scores = {
            (4 * i, 4 * j + 3): seen.starts[i] + seen.ends[j]
            for i, j in itertools.combinations_with_replacement(range(15), 2)
        }
        ranked = sorted(scores.items(), key=lambda item: -item[1])[:ALTERNATIVES]
        found = ALWAYS.spans([seen])
        assert [tuple(row[:2]) for row in found] == [span for span, _ in ranked]
        assert np.all(np.diff(found[:, 2]) <= 0)
        assert found[:, 2].sum() < 1


def test_an_end_before_its_start_is_no_answer() -> None:
    found = ALWAYS.spans([window([0, 9, 0], [9, 0, 0])])
    assert (found[:, 0] < found[:, 1]).all()


def test_an_answer_has_no_more_than_so_many_tokens() -> None:
    n = MOST_TOKENS + 5
    starts, ends = np.zeros(n), np.zeros(n)
    starts[0], ends[-1] = 9, 9
    found = ALWAYS.spans([window(list(starts), list(ends))])
    lengths = (found[:, 1] - found[:, 0] + 1) / 4
    assert lengths.max() <= MOST_TOKENS


def test_what_two_windows_share_counts_once_by_its_better_score() -> None:
    one, other = window([0, 1], [0, 1]), window([3, 0], [3, 0], first=1)
    found = ALWAYS.spans([one, other])
    spans = [tuple(row[:2]) for row in found if row[2] > 0]
    assert spans[0] == (4, 7)
    assert len(spans) == len(set(spans))


def test_no_answer_competes_where_it_was_learnt() -> None:
    seen = window([1, 0], [1, 0], nothing=5)
    assert SOMETIMES.spans([seen])[0, 0] == -1
    assert ALWAYS.spans([seen])[0, 0] == 0
    # Of several windows, each must say that there is none.
    assert SOMETIMES.spans([seen, window([1, 0], [1, 0], first=2, nothing=-9)])[0, 0] == 0


def test_an_answer_says_what_else_it_could_have_been() -> None:
    asked = Question("Who?", "abc def ghi", ())
    told = SOMETIMES.answer(
        SOMETIMES.spans([window([9, 0, 0], [8, 1, 0], nothing=6)]), top=3, of=asked
    )
    assert (told["answer"], told["start"], told["end"]) == ("abc", 0, 3)
    assert [other["answer"] for other in told["alternatives"]] == ["abc def", "abc def ghi"]
    assert 0 < told["alternatives"][0]["score"] < told["score"] < 1
    none = SOMETIMES.answer(SOMETIMES.spans([window([0], [0], nothing=9)]), top=1, of=asked)
    assert none == {
        "answer": "",
        "start": None,
        "end": None,
        "score": pytest.approx(1, abs=1e-3),
        "alternatives": [],
    }


def test_metrics_are_means_over_questions_and_rows_over_their_kinds() -> None:
    context = "abc def ghi"
    truth = [
        Question("", context, (Answer("def ghi", 4), Answer("ghi", 8))),
        Question("", context, (Answer("abc", 0),)),
        Question("", context, ()),
    ]
    said = [np.zeros((ALTERNATIVES, 3)) for _ in truth]
    for rows, span in zip(said, [(4, 7, 0.9), (0, 3, 0.8), (-1, -1, 0.7)], strict=True):
        rows[0] = span
    assert SOMETIMES.metrics(said, truth) == pytest.approx(
        {"exact_match": 2 / 3, "f1_span": (2 / 3 + 1 + 1) / 3}
    )
    assert SOMETIMES.correct(said, truth).tolist() == [0, 1, 1]
    rows = {row["label"]: row for row in SOMETIMES.details(said, truth)["per_class"]}
    assert (rows[ANSWER]["exact_match"], rows[ANSWER]["support"]) == (0.5, 2)
    assert (rows[NO_ANSWER]["exact_match"], rows[NO_ANSWER]["support"]) == (1, 1)
    back = SOMETIMES.unpacked(SOMETIMES.packed(said), truth)
    assert SOMETIMES.metrics(back, truth) == pytest.approx(SOMETIMES.metrics(said, truth))
