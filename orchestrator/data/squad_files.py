"""SQuAD files, and answers as data sets write them: where in its context each of them stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.data.labels import LabelError
from orchestrator.errors import DataError
from orchestrator.tasks.annotations import Answer

Written = tuple[object, object, object]  # question, context, answers


@dataclass(frozen=True)
class Placed:
    """A question's answers that its context has; how many had to be moved, and were absent."""

    answers: tuple[Answer, ...]
    moved: int = 0
    absent: int = 0


def parse_squad(data: bytes, location: str) -> Iterator[Written]:
    """The questions of a SQuAD file, version 1.1 or 2.0.

    Raises:
        DataError: It is none.
    """
    try:
        articles = json.loads(data.decode("utf-8-sig"))["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = [] if asked.get("is_impossible") else asked["answers"]
                    yield asked["question"], paragraph["context"], answers
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise DataError(
            f"{location}: no SQuAD file ({type(err).__name__}: {err}). Expected is "
            '{"data": [{"paragraphs": [{"context": …, "qas": [{"question": …, "answers": '
            '[{"text": …, "answer_start": …}]}]}]}]}'
        ) from err


def written_answers(cell: object) -> list[tuple[str, int | None]]:
    """The answers in a cell, each with where it starts, if that is said; empty ones left out.

    A cell is a text, a list of texts or of `{text, answer_start}`, or, as `datasets` has it, an
    object of two lists. None, and what has no text in it, is no answer.

    Raises:
        LabelError: It is something else.
    """
    if cell is None:
        return []
    if isinstance(cell, dict) and isinstance(cell.get("text"), list):
        texts = cell["text"]
        starts = cell.get("answer_start") or [None] * len(texts)
        if len(starts) != len(texts):
            raise LabelError(f"{len(texts)} answers with {len(starts)} starts")
        return [
            _answer(*pair) for pair in zip(texts, starts, strict=True) if str(pair[0] or "").strip()
        ]
    given = cell if isinstance(cell, list) else [cell]
    found = []
    for item in given:
        if isinstance(item, dict):
            found.append(_answer(item.get("text"), item.get("answer_start")))
        else:
            found.append(_answer(item, None))
    return [answer for answer in found if answer[0].strip()]


def placed(written: list[tuple[str, int | None]], context: str) -> Placed:
    """Answers where they stand in their context.

    One whose start is wrong or not given is looked for: the occurrence nearest to the start that is
    given counts, or the first.
    """
    answers, moved, absent = [], 0, 0
    for text, start in written:
        at = _nearest(text, context, start)
        if at is None:
            absent += 1
            continue
        moved += start is not None and at != start
        answers.append(Answer(text, at))
    return Placed(tuple(answers), moved, absent)


def _answer(text: Any, start: Any) -> tuple[str, int | None]:
    if not isinstance(text, str):
        raise LabelError(f"a {type(text).__name__} where the text of an answer is expected")
    if start is not None and (isinstance(start, bool) or not isinstance(start, int)):
        raise LabelError(f"a {type(start).__name__} where the start of an answer is expected")
    return text, start


def _nearest(text: str, context: str, start: int | None) -> int | None:
    if start is not None and start >= 0 and context.startswith(text, start):
        return start
    places = []
    at = context.find(text)
    while at >= 0:
        places.append(at)
        at = context.find(text, at + 1)
    return min(places, key=lambda place: abs(place - (start or 0)), default=None)
