"""What is true of one text where an answer points into it: its words' tags, or its answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Span = tuple[int, int]  # characters, from the first to the one behind the last

IGNORED = -1  # the target of a token that has no tag
OUT_OF_REACH = -1.0  # the target of a position where no answer can start or end


@dataclass(frozen=True, slots=True)
class TaggedText:
    """A text, where its words lie, and the IOB2 tag of each."""

    text: str
    words: tuple[Span, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was annotated: its text, and the character at which it starts."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a context, and all that counts as its answer; nothing if it has none."""

    question: str
    context: str
    answers: tuple[Answer, ...]


Annotation = TaggedText | Question

SEPARATOR = "\x1f"  # between a question and its context in one text


def to_json(annotation: Annotation) -> str:
    """All that an annotation says beside the text."""
    if isinstance(annotation, TaggedText):
        content: dict[str, Any] = {"words": annotation.words, "tags": annotation.tags}
    else:
        content = {"answers": [[answer.text, answer.start] for answer in annotation.answers]}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def text_of(annotation: Annotation) -> str:
    """The text that an annotation is of; a question stands before its context."""
    if isinstance(annotation, TaggedText):
        return annotation.text
    return f"{annotation.question}{SEPARATOR}{annotation.context}"


def from_json(text: str, content: str) -> Annotation:
    """What `text_of` and `to_json` were made of."""
    given = json.loads(content)
    if "words" in given:
        words = tuple((start, end) for start, end in given["words"])
        return TaggedText(text, words, tuple(given["tags"]))
    question, _, context = text.partition(SEPARATOR)
    return Question(question, context, tuple(Answer(t, start) for t, start in given["answers"]))
