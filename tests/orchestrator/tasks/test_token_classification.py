"""Words' probabilities become entities, and these are counted as seqeval counts them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.scheme import IOB2

from orchestrator.spec.parts import TaskSpec
from orchestrator.tasks.annotations import TaggedText
from orchestrator.tasks.token_classification import Entity, TokenClassification

TASK = TokenClassification(TaskSpec(kind="token-classification", labels=("LOC", "PER")))
TAGS = TASK.spec.outputs


def text_of(tags: list[str]) -> TaggedText:
    words = [f"w{i}" for i in range(len(tags))]
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    spans = tuple((int(s), int(s) + len(w)) for s, w in zip(starts, words, strict=False))
    return TaggedText(" ".join(words), spans, tuple(tags))


def probs_of(tags: list[str], sure: float = 0.8) -> np.ndarray:
    rest = (1 - sure) / (len(TAGS) - 1)
    return np.array([[sure if t == tag else rest for t in TAGS] for tag in tags])


def drawn(n: int, seed: int) -> list[list[str]]:
    """Random tags; only valid ones where they are true."""
    rng = np.random.default_rng(seed)
    return [list(rng.choice(TAGS, rng.integers(1, 9))) for _ in range(n)]


def valid(tags: list[str]) -> list[str]:
    found: list[str] = []
    for tag in tags:
        stray = tag[0] == "I" and (not found or found[-1][2:] != tag[2:])
        found.append(f"B{tag[1:]}" if stray else tag)
    return found


def test_the_outputs_are_a_tag_for_none_and_two_for_each_kind() -> None:
    assert TAGS == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert TASK.n_outputs == 5


def test_entities_are_counted_as_seqeval_counts_them() -> None:
    """By its default rules, which are the strict ones once a stray I- begins an entity."""
    true, predicted = [valid(tags) for tags in drawn(200, 0)], drawn(200, 1)
    true, predicted = (
        true,
        [p[: len(t)] + ["O"] * (len(t) - len(p)) for t, p in zip(true, predicted, strict=True)],
    )
    truth, said = [text_of(tags) for tags in true], [probs_of(tags) for tags in predicted]
    found = TASK.metrics(said, truth)
    options = {"mode": "strict", "scheme": IOB2}
    assert found["f1_entity"] == pytest.approx(f1_score(true, predicted))
    predicted = [valid(tags) for tags in predicted]
    assert found["f1_entity"] == pytest.approx(f1_score(true, predicted, **options))
    assert found["precision_entity"] == pytest.approx(precision_score(true, predicted, **options))
    assert found["recall_entity"] == pytest.approx(recall_score(true, predicted, **options))
    report = classification_report(true, predicted, output_dict=True, zero_division=0, **options)
    rows = {row["label"]: row for row in TASK.details(said, truth)["per_class"]}
    for kind in TASK.spec.labels:
        assert rows[kind]["precision"] == pytest.approx(report[kind]["precision"])
        assert rows[kind]["f1"] == pytest.approx(report[kind]["f1-score"])
        assert rows[kind]["support"] == report[kind]["support"]


def test_words_are_measured_as_a_classification() -> None:
    truth = [text_of(["O", "B-PER", "I-PER"]), text_of(["B-LOC"])]
    said = [probs_of(["O", "B-PER", "O"]), probs_of(["B-LOC"])]
    found = TASK.metrics(said, truth)
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["log_loss"] == pytest.approx(-(3 * np.log(0.8) + np.log(0.05)) / 4)
    confusion = TASK.details(said, truth)["confusion"]
    assert confusion == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_a_stray_continuation_is_answered_as_an_entity() -> None:
    said = probs_of(["I-PER", "I-PER", "B-PER", "O", "I-LOC"])
    entities = [entity for entity, _ in TASK.entities(said)]
    assert entities == [Entity("PER", 0, 1), Entity("PER", 2, 2), Entity("LOC", 4, 4)]


def test_an_answer_has_characters_and_a_score() -> None:
    text = text_of(["O", "B-PER", "I-PER"])
    answer = TASK.answer(probs_of(["O", "B-PER", "I-PER"]), top=1, of=text)
    (entity,) = answer["entities"]
    assert entity["score"] == pytest.approx(0.8)
    assert {k: v for k, v in entity.items() if k != "score"} == {
        "label": "PER",
        "start": 3,
        "end": 8,
        "text": "w1 w2",
    }


def test_a_text_is_right_when_all_its_entities_are_found_and_no_others() -> None:
    truth = [text_of(["O", "B-PER"]), text_of(["O", "O"]), text_of(["B-PER", "O"])]
    said = [probs_of(["O", "B-PER"]), probs_of(["B-LOC", "O"]), probs_of(["O", "O"])]
    assert TASK.correct(said, truth).tolist() == [1, 0, 0]


def test_the_metric_of_a_resample_counts_a_text_as_often_as_it_is_drawn() -> None:
    truth = [text_of(["B-PER"]), text_of(["B-PER"])]
    said = [probs_of(["B-PER"]), probs_of(["O"])]
    score = TASK.scorer(said, truth, "recall_entity")
    assert score is not None
    assert score(np.array([0, 0, 1])) == pytest.approx(2 / 3)
    whole, some = TASK.metrics(said, truth), np.array([0, 0, 1])
    chosen = TASK.metrics([said[i] for i in some], [truth[i] for i in some])
    for metric in ("accuracy", "log_loss"):
        score = TASK.scorer(said, truth, metric)
        assert score is not None
        assert score(np.arange(len(truth))) == pytest.approx(whole[metric])
        assert score(some) == pytest.approx(chosen[metric])
    assert TASK.scorer(said, truth, "ece") is None


def test_what_is_kept_comes_back_text_by_text() -> None:
    truth = [text_of(["O", "O"]), text_of(["B-PER"]), text_of(["O"] * 3)]
    said = [probs_of(list(text.tags)).astype(np.float32) for text in truth]
    back = TASK.unpacked(TASK.packed(said), truth)
    assert all(np.array_equal(a, b) for a, b in zip(said, back, strict=True))


def test_nothing_found_and_nothing_true_is_zero_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TASK.metrics([probs_of(["O"])], [text_of(["O"])])["f1_entity"] == 0.0
