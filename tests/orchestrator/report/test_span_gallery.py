"""The worst texts come first, with what was said and what is true marked in them."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.report.intervals import interval_of, paired_gain
from orchestrator.report.predictions import Predictions
from orchestrator.report.span_gallery import Mark, marked, span_gallery, wrong_texts
from orchestrator.spec.parts import ObjectiveSpec, TaskSpec
from orchestrator.tasks.annotations import Answer, Question, TaggedText

NAMES = TaskSpec(kind="token-classification", labels=("LOC", "PER"))
QUESTIONS = TaskSpec(kind="question-answering", labels=("answer", "no answer"))
CONTEXT = "Anna led the museum until 1950 ."


def tagged(tags: str) -> TaggedText:
    words = ["Anna", "saw", "Bern", "<b>"]
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    spans = tuple((int(s), int(s) + len(w)) for s, w in zip(starts, words, strict=False))
    return TaggedText(" ".join(words), spans, tuple(tags.split()))


def probs(tags: str, sure: float = 0.9) -> np.ndarray:
    rest = (1 - sure) / 4
    return np.array([[sure if t == tag else rest for t in NAMES.outputs] for tag in tags.split()])


def predictions(task: TaskSpec, said: list[np.ndarray], truth: list[object]) -> Predictions:
    return Predictions(
        split="test",
        task=task,
        examples=np.arange(len(truth)),
        probs=said,
        truth=truth,
        uris=tuple(f"/data/names.conll#{i}" for i in range(len(truth))),
    )


@pytest.fixture
def names() -> Predictions:
    truth = [tagged("B-PER O B-LOC O"), tagged("B-PER O B-LOC O"), tagged("B-PER O B-LOC O")]
    said = [probs("B-PER O B-LOC O"), probs("B-LOC O O O"), probs("B-PER O O O")]
    return predictions(NAMES, said, list(truth))


@pytest.fixture
def questions() -> Predictions:
    asked = Question("Who led it?", CONTEXT, (Answer("Anna", 0),))
    spans = [np.zeros((5, 3)) for _ in range(3)]
    spans[0][0], spans[1][0], spans[2][0] = (0, 4, 0.9), (26, 30, 0.8), (-1, -1, 0.6)
    return predictions(QUESTIONS, spans, [asked] * 3)


def test_the_text_with_most_mistakes_is_the_worst(names: Predictions) -> None:
    shown, n_wrong = wrong_texts(names)
    assert n_wrong == 2
    assert [wrong.uri[-1] for wrong in shown] == ["1", "2"]
    assert [(mark.verdict, mark.label) for mark in shown[0].marks] == [
        ("extra", "LOC"),
        ("missed", "PER"),
        ("missed", "LOC"),
    ]
    assert shown[1].lines == (("missed", "LOC “Bern”"),)


def test_the_page_marks_spans_and_escapes_what_they_stand_in(names: Predictions) -> None:
    page = span_gallery(names)
    assert '<mark class="missed">Bern<i>LOC</i></mark> &lt;b&gt;' in page
    assert "2 of 3 texts of the test split have a mistake" in page
    right = predictions(NAMES, [names.probs[0]], [names.truth[0]])
    assert "Not one of 1 text of the test split is answered wrongly" in span_gallery(right)


def test_a_wrong_answer_stands_beside_the_true_one(questions: Predictions) -> None:
    shown, n_wrong = wrong_texts(questions)
    assert n_wrong == 2
    assert shown[0].title == "Who led it?"
    assert shown[0].lines == (("said", "“1950” (80 %)"), ("truly", "Anna"))
    assert shown[1].lines[0] == ("said", "no answer")
    page = span_gallery(questions)
    assert '<mark class="extra">1950<i>said</i></mark>' in page
    assert '<mark class="missed">Anna<i>true</i></mark>' in page


def test_of_a_long_text_the_part_around_the_marks_is_shown() -> None:
    text = "x" * 500 + "Anna" + "y" * 500
    page = marked(text, [Mark(500, 504, "hit", "PER")])
    assert page.startswith("…x")
    assert page.endswith("y…")
    assert len(page) < 400


def test_intervals_are_of_the_tasks_own_metrics(names: Predictions, questions: Predictions) -> None:
    f1 = interval_of(names, "f1_entity")
    assert f1 is not None
    assert 0 <= f1.low < 0.67 < f1.high <= 1
    exact = interval_of(questions, "exact_match")
    assert exact is not None
    assert exact.low < 1 / 3 < exact.high
    loss = interval_of(names, "log_loss")
    assert loss is not None
    assert 0 < loss.low < loss.high
    assert interval_of(names, "ece") is None
    better = predictions(QUESTIONS, [questions.probs[0]] * 3, list(questions.truth))
    gain = paired_gain(better, questions, ObjectiveSpec(metric="f1_span"))
    assert gain is not None
    assert gain.value == pytest.approx(2 / 3)
