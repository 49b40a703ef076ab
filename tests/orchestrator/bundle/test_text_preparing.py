"""What is asked as text is read as it stands: every place that is answered is a place in it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from orchestrator.bundle.preparing import (
    Input,
    QuestionPreparer,
    TaggedTextPreparer,
    TextPreparer,
    question_in,
    text_in,
)
from orchestrator.errors import UnreadableExample
from orchestrator.spec.parts import TextContract
from orchestrator.tasks.annotations import Question
from tests.orchestrator.text_material import tiny_tokenizer

CONTRACT = TextContract(size=16, tokenizer="0" * 64, pad=0, overlap=4)
WHOLE = CONTRACT.model_copy(update={"overlap": None})
HALF = "\ud83d"  # of a pair, as JSON may spell it


def test_a_byte_order_mark_before_a_text_moves_no_word() -> None:
    preparer = TaggedTextPreparer(CONTRACT, tiny_tokenizer())
    given = "\ufeffcat in Zurich"
    read = preparer.read(given)
    assert read.source == preparer.read(" cat in Zurich").source
    assert [given[a:b] for a, b in read.source.words] == ["cat", "in", "Zurich"]
    from_file = preparer.read(given.encode())
    assert from_file.source == preparer.read("cat in Zurich").source


@pytest.mark.parametrize(
    "read",
    [
        TextPreparer(WHOLE, tiny_tokenizer(), 1).read,
        TaggedTextPreparer(CONTRACT, tiny_tokenizer()).read,
        lambda text: QuestionPreparer(CONTRACT, tiny_tokenizer()).read(
            {"question": text, "context": text}
        ),
    ],
)
def test_half_a_pair_of_surrogates_can_be_asked(read: Callable[[str], object]) -> None:
    assert read(f"cat {HALF} ten") is not None
    assert text_in(f"cat {HALF} ten") == "cat ? ten"


@pytest.mark.parametrize("form", [lambda q: q, json.dumps, lambda q: json.dumps(q).encode()])
def test_questions_keep_the_places_of_their_contexts(form: Callable[[object], Input]) -> None:
    asked = {"question": f"is {HALF} it?", "context": f"\ufeffcat {HALF} ten"}
    assert question_in(form(asked)) == Question("is ? it?", " cat ? ten", ())


@pytest.mark.parametrize("part", ["question", "context"])
@pytest.mark.parametrize("text", ["", " ", "\ufeff", "a\0b"])
def test_questions_without_text_are_refused(part: str, text: str) -> None:
    asked = {"question": "is it?", "context": "it is", part: text}
    with pytest.raises(
        UnreadableExample, match=r"has a question or context that (is empty|holds NUL)"
    ):
        question_in(asked)
