"""Answers are scored as by the official script of SQuAD 2.0, written down here a second time."""

from __future__ import annotations

import collections
import re
import string

import numpy as np
import pytest

from orchestrator.tasks.squad import exact_match, f1_span, normal_answer

WORDS = ["the", "a", "An", "Denver", "Broncos", "broncos,", "1,000", "U.S.", "it's", "—", "x"]


def official_normalize(s: str) -> str:
    def remove_articles(text: str) -> str:
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def official_f1(a_gold: str, a_pred: str) -> float:
    gold_toks = official_normalize(a_gold).split() if a_gold else []
    pred_toks = official_normalize(a_pred).split() if a_pred else []
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return float(gold_toks == pred_toks)
    if num_same == 0:
        return 0.0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def official_scores(answers: list[str], prediction: str) -> tuple[float, float]:
    gold = [a for a in answers if official_normalize(a)]
    if not gold:
        gold = [""]
    exact = max(float(official_normalize(a) == official_normalize(prediction)) for a in gold)
    return exact, max(official_f1(a, prediction) for a in gold)


def test_five_hundred_drawn_answers_score_as_officially() -> None:
    rng = np.random.default_rng(0)

    def drawn() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(0, 4)))

    for _ in range(500):
        truth, said = [drawn() for _ in range(rng.integers(0, 4))], drawn()
        assert (exact_match(said, truth), f1_span(said, truth)) == official_scores(truth, said)
        assert normal_answer(said) == official_normalize(said)


@pytest.mark.parametrize(
    ("said", "truth", "exact", "f1"),
    [
        ("The Broncos!", ["broncos"], 1, 1),
        ("Denver Broncos", ["Broncos", "the Denver team"], 0, 2 / 3),
        ("", [], 1, 1),
        ("Broncos", [], 0, 0),
        ("", ["Broncos"], 0, 0),
        ("the", ["a"], 1, 1),
    ],
)
def test_scores_by_hand(said: str, truth: list[str], exact: float, f1: float) -> None:
    assert exact_match(said, truth) == exact
    assert f1_span(said, truth) == pytest.approx(f1)
