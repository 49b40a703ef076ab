"""The texts that were answered wrongly, with the words marked that the wrong answer rests on."""

from __future__ import annotations

import re

import numpy as np
import pytest

from orchestrator.report.gallery import MOST_CHARACTERS, gallery
from orchestrator.report.predictions import Basis, Predictions
from orchestrator.spec.parts import TaskSpec

TASK = TaskSpec(kind="text-classification", labels=("a", "b"))


def page_of(text: str, *basis: Basis) -> str:
    probs = np.array([[0.9, 0.1]])
    bases = {3: basis} if basis else {}
    given = Predictions("test", TASK, np.array([3]), probs, np.array([1]), ("t.txt",), bases)
    return gallery(given, lambda split, example: text)


def excerpt(page: str) -> str:
    found = re.search(r'<blockquote class="excerpt">(.*)</blockquote>', page)
    assert found is not None
    return found[1]


def basis(text: str, word: str, fall: float) -> Basis:
    return Basis(text.index(word), text.index(word) + len(word), fall)


def test_words_are_marked_where_they_stand_and_weak_ones_are_not() -> None:
    text = "  the <cat>\n\n of the  dog is red\n"
    words = [basis(text, "dog", 0.5), basis(text, "cat", 0.02), basis(text, "red", 0.009)]
    page = page_of(text, *words, basis(text, "of", -0.3))
    cat, dog = '<mark title="−2 %">cat</mark>', '<mark title="−50 %">dog</mark>'
    shown = excerpt(page).replace(" without it", "")
    assert shown.strip() == f"the &lt;{cat}&gt; of the {dog} is red"
    assert "Without a word that is marked the wrong label is less likely." in page


def test_a_text_of_which_nothing_is_known_is_shown_without_marks() -> None:
    page = page_of("the cat\n is red")
    assert excerpt(page) == "the cat is red"
    assert "marked" not in page


@pytest.mark.parametrize("at", [0, 350, 390, 396, 450])
def test_an_excerpt_is_no_longer_with_marks_than_without(at: int) -> None:
    text = "x" * at + " word " + "y " * 400
    shown = re.sub(r"<[^>]*>", "", excerpt(page_of(text, basis(text, "word", 0.2))))
    assert len(shown) <= MOST_CHARACTERS
    assert shown.endswith("…")
    assert ("word" in shown) is (at < 396)
