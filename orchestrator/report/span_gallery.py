"""Span gallery: the texts that the winner got most wrong, with what it said marked in them.

A mark is `hit` where what was said is true, `extra` where it is not, and `missed` where something
true was not said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from orchestrator.report.figures import figure
from orchestrator.report.gallery import MOST_SHOWN
from orchestrator.report.markup import Safe, el, join
from orchestrator.report.predictions import Predictions
from orchestrator.report.wording import cut, percent, plural
from orchestrator.tasks.annotations import Question, TaggedText
from orchestrator.tasks.question_answering import QuestionAnswering, text_of
from orchestrator.tasks.squad import f1_span
from orchestrator.tasks.task import build_task
from orchestrator.tasks.token_classification import TokenClassification

AROUND = 120  # characters before and behind what is marked
MOST_ANSWERS = 3
Verdict = Literal["hit", "extra", "missed"]


@dataclass(frozen=True)
class Mark:
    """Characters of a text, and what to say of them."""

    start: int
    end: int
    verdict: Verdict
    label: str


@dataclass(frozen=True)
class WrongText:
    """One text with a mistake: the worse the higher `wrongness`."""

    uri: str
    title: str
    text: str
    marks: tuple[Mark, ...]
    lines: tuple[tuple[str, str], ...]
    wrongness: float


def wrong_texts(given: Predictions, *, most: int = MOST_SHOWN) -> tuple[list[WrongText], int]:
    """The worst texts, and how many have a mistake in all."""
    task = build_task(given.task)
    right = task.correct(given.probs, given.truth)
    chosen = np.flatnonzero(right == 0)
    if isinstance(task, TokenClassification):
        found = [_tagged(task, given.truth[i], given.probs[i], given.uris[i]) for i in chosen]
    else:
        assert isinstance(task, QuestionAnswering)
        found = [_asked(given.truth[i], given.probs[i], given.uris[i]) for i in chosen]
    return sorted(found, key=lambda wrong: -wrong.wrongness)[:most], len(found)


def span_gallery(given: Predictions) -> Safe:
    """The figure, or a sentence where nothing is wrong."""
    shown, n_wrong = wrong_texts(given)
    where = f"{plural(len(given), 'text')} of the {given.split} split"
    if not shown:
        return el("p", f"Not one of {where} is answered wrongly.", class_="empty")
    key = join(
        [
            el("mark", "found", class_="hit"),
            " ",
            el("mark", "said, not true", class_="extra"),
            " ",
            el("mark", "true, not said", class_="missed"),
        ]
    )
    return figure(
        f"{n_wrong:,} of {where} have a mistake; the worst of them",
        el("p", key, class_="key"),
        el("ul", *(_card(wrong) for wrong in shown), class_="gallery texts"),
        note="Look for wrong annotations in the data before blaming the model.",
        class_="wide",
    )


def _tagged(task: TokenClassification, truth: TaggedText, probs: Any, uri: str) -> WrongText:
    eye = np.eye(task.n_outputs)
    number = {tag: i for i, tag in enumerate(task.spec.outputs)}
    said = dict(task.entities(probs))
    true = {entity for entity, _ in task.entities(eye[[number[tag] for tag in truth.tags]])}
    marks, lines = [], []
    for entity in sorted({*said, *true}, key=lambda e: (e.first, e.last, e.kind)):
        verdict: Verdict = "hit" if entity in said and entity in true else "extra"
        verdict = "missed" if entity not in said else verdict
        start, end = truth.words[entity.first][0], truth.words[entity.last][1]
        marks.append(Mark(start, end, verdict, entity.kind))
        if verdict == "extra":
            words = f"{entity.kind} “{cut(truth.text[start:end], 40)}” ({percent(said[entity])})"
            lines.append(("said", words))
        elif verdict == "missed":
            lines.append(("missed", f"{entity.kind} “{cut(truth.text[start:end], 40)}”"))
    sure = max((score for entity, score in said.items() if entity not in true), default=0.0)
    return WrongText(uri, "", truth.text, tuple(marks), tuple(lines), len(lines) + sure)


def _asked(truth: Question, spans: Any, uri: str) -> WrongText:
    best = spans[0]
    said = text_of(best, truth.context)
    right = [answer.text for answer in truth.answers]
    marks = [
        Mark(answer.start, answer.start + len(answer.text), "missed", "true")
        for answer in truth.answers[:1]
    ]
    if best[0] >= 0:
        marks.append(Mark(int(best[0]), int(best[1]), "extra", "said"))
    lines = (
        ("said", f"“{said}” ({percent(float(best[2]))})" if said else "no answer"),
        ("truly", "; ".join(dict.fromkeys(right[:MOST_ANSWERS])) or "no answer"),
    )
    wrongness = 1 - f1_span(said, right) + float(best[2])
    return WrongText(uri, truth.question, truth.context, tuple(marks), lines, wrongness)


def _card(wrong: WrongText) -> Safe:
    title = [el("p", el("b", wrong.title))] if wrong.title else []
    lines = [el("p", f"{name} ", el("b", words), class_="line") for name, words in wrong.lines[:6]]
    return el(
        "li",
        *title,
        el("blockquote", marked(wrong.text, wrong.marks), class_="excerpt"),
        *lines,
        el("p", wrong.uri.rpartition("/")[2], class_="uri", title=wrong.uri),
    )


def marked(text: str, marks: Sequence[Mark]) -> Safe:
    """The part of a text around its marks, with these in it; of overlapping ones the first."""
    first = min((mark.start for mark in marks), default=0)
    last = max((mark.end for mark in marks), default=0)
    begin, end = max(0, first - AROUND), min(len(text), last + AROUND)
    parts: list[str] = ["…"] if begin else []
    at = begin
    for mark in sorted(marks, key=lambda m: (m.start, m.end)):
        if mark.start < at:
            continue
        parts.append(text[at : mark.start])
        words = text[mark.start : mark.end]
        parts.append(el("mark", words, el("i", mark.label), class_=mark.verdict))
        at = mark.end
    parts.append(text[at:end])
    return join([*parts, "…"] if end < len(text) else parts)
