"""Texts that answers point into: tokens with their characters, windows, and the way back.

A text of more tokens than an encoder takes is several inputs: windows, each of which shares some
tokens with the next, so that no word and no answer is lost at a border. What a network says of the
tokens of all windows becomes what is said of the text's words, or of the spans of its context. No
torch: training and serving go the same way.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from orchestrator.data.tokens import Indices, TokenRows
from orchestrator.spec.parts import TextContract
from orchestrator.tasks.annotations import (
    IGNORED,
    OUT_OF_REACH,
    Annotation,
    Question,
    Span,
    TaggedText,
)
from orchestrator.tasks.metrics import Floats
from orchestrator.tasks.question_answering import QuestionAnswering, Window
from orchestrator.tasks.tags import OUTSIDE
from orchestrator.tasks.task import Said, Task
from orchestrator.tasks.token_classification import TokenClassification

_FIRST, _SECOND = "a", "b"
NO_WORD = -1


@dataclass(frozen=True)
class Encoded:
    """A tokenized text.

    Attributes:
        lead: int32 [Q], the tokens that stand before it in every window: of its question, or none.
        ids: int32 [T], its own tokens without special ones.
        spans: int64 [T, 2], the characters of each, white space before it left out.
    """

    lead: NDArray[np.int32]
    ids: NDArray[np.int32]
    spans: Indices


@dataclass(frozen=True)
class Layout:
    """The special tokens around a text, or around a question and its context.

    Attributes:
        before: What an input begins with.
        between: What stands between the two; nothing where there is one.
        after: What it ends with.
        types: The tokenizer's type of these three, of the first and of the second text.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int, int, int, int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, pair: bool) -> Layout:
        """How a tokenizer lays out one text, or two."""
        first = tokenizer.encode(_FIRST, add_special_tokens=False).ids
        if not pair:
            whole = tokenizer.encode(_FIRST)
            start = _find(whole.ids, first, 0)
            end = start + len(first)
            return cls(tuple(whole.ids[:start]), (), tuple(whole.ids[end:]), (0, 0, 0, 0, 0))
        second = tokenizer.encode(_SECOND, add_special_tokens=False).ids
        whole = tokenizer.encode(_FIRST, _SECOND)
        start = _find(whole.ids, first, 0)
        end = start + len(first)
        again = _find(whole.ids, second, end)
        last = again + len(second)
        kinds = whole.type_ids
        types = (
            kinds[0] if start else 0,
            kinds[end] if again > end else 0,
            kinds[last] if last < len(kinds) else 0,
            kinds[start],
            kinds[again],
        )
        return cls(
            tuple(whole.ids[:start]),
            tuple(whole.ids[end:again]),
            tuple(whole.ids[last:]),
            types,
        )

    @property
    def extra(self) -> int:
        """Special tokens in all."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True)
class Cutter:
    """Cuts texts into windows that fit an encoder, and lays them out as inputs."""

    layout: Layout
    contract: TextContract
    _overlap: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.contract.overlap is not None, "texts are cut into windows by their overlap"
        object.__setattr__(self, "_overlap", self.contract.overlap)

    def lead_length(self, n_lead: int) -> int:
        """Tokens of a question that are kept: at most half of an input."""
        return min(n_lead, (self.contract.size - self.layout.extra) // 2)

    def windows(self, n_lead: int, n_tokens: int) -> list[Span]:
        """The stretches of a text's tokens that its inputs show, one for each."""
        most = self.contract.size - self.layout.extra - self.lead_length(n_lead)
        if n_tokens <= most:
            return [(0, n_tokens)]
        # A long question leaves little: its windows share half at most, or they would be too many.
        step = most - min(self._overlap, most // 2)
        # The last one ends with the text, and so shows as much before its last words as it can.
        starts = [*range(0, n_tokens - most, step), n_tokens - most]
        return [(start, start + most) for start in starts]

    def before(self, text: Encoded) -> int:
        """Where a window's own tokens begin in its input."""
        lead = self.lead_length(len(text.lead))
        return len(self.layout.before) + lead + len(self.layout.between)

    def rows(self, cut: Sequence[tuple[Encoded, Span]]) -> TokenRows:
        """Windows as one batch."""
        layout = self.layout
        inputs: list[list[NDArray[Any]]] = []
        for text, (start, stop) in cut:
            lead = text.lead[: self.lead_length(len(text.lead))]
            parts = (layout.before, lead, layout.between, text.ids[start:stop], layout.after)
            inputs.append([np.asarray(part, np.int64) for part in parts])
        lengths = np.array([sum(len(part) for part in parts) for parts in inputs], np.int64)
        shape = (len(inputs), int(lengths.max(initial=1)))
        ids = np.full(shape, self.contract.pad, np.int64)
        types = np.zeros(shape, np.int64)
        of_before, of_between, of_after, first, second = layout.types
        kinds = (of_before, first, of_between, second, of_after)
        for row, row_types, pieces, length in zip(ids, types, inputs, lengths, strict=True):
            row[:length] = np.concatenate(pieces)
            row_types[:length] = np.repeat(kinds, [len(part) for part in pieces])
        return TokenRows(ids, lengths, types if types.any() else None)


def encode(tokenizer: Tokenizer, annotation: Annotation) -> Encoded:
    """The tokens of a text; of a question, those of its context."""
    match annotation:
        case TaggedText():
            return encoded(tokenizer.encode(annotation.text, add_special_tokens=False), annotation)
        case Question():
            lead = tokenizer.encode(annotation.question, add_special_tokens=False).ids
            own = tokenizer.encode(annotation.context, add_special_tokens=False)
            return encoded(own, annotation, lead=lead)
        case _:
            assert_never(annotation)


def encoded(own: Encoding, annotation: Annotation, *, lead: Sequence[int] = ()) -> Encoded:
    """A tokenizer's output as `Encoded`."""
    text = annotation.text if isinstance(annotation, TaggedText) else annotation.context
    spans = [_trimmed(text, start, end) for start, end in own.offsets]
    return Encoded(
        np.asarray(lead, np.int32),
        np.asarray(own.ids, np.int32),
        np.asarray(spans, np.int64).reshape(-1, 2),
    )


def words_of(own: Encoding, text: str) -> tuple[Span, ...]:
    """The words of a text as its tokenizer splits it: what predictions are made for.

    Tokenizers that split at white space alone are helped: punctuation is a word of its own.
    """
    words: list[Span] = []
    before: int | None = None
    kind = False
    for number, (start, end) in zip(own.word_ids, own.offsets, strict=True):
        start, end = _trimmed(text, start, end)
        if start == end:
            continue
        marked = _is_punctuation(text[start])
        if words and number == before and words[-1][1] >= start and marked == kind:
            words[-1] = (words[-1][0], end)
        else:
            words.append((start, end))
        before, kind = number, _is_punctuation(text[end - 1])
    return tuple(words)


def first_tokens(text: Encoded, words: Sequence[Span]) -> Indices:
    """The word whose first token each token is, or NO_WORD: int64 [T].

    The first token of a word says its tag (Devlin et al., NAACL 2019, section 5.3).
    """
    return _firsts(_tokens_words(text, words))


def _firsts(around: Indices) -> Indices:
    """The same where a token is the first of its word, NO_WORD elsewhere."""
    _, first = np.unique(around, return_index=True)
    found = np.full(len(around), NO_WORD, np.int64)
    found[first] = around[first]
    return found


def _tokens_words(text: Encoded, words: Sequence[Span]) -> Indices:
    """The word that each token begins in, or NO_WORD: int64 [T]."""
    if not words:
        return np.full(len(text.ids), NO_WORD, np.int64)
    bounds = np.asarray(words, np.int64)
    at = np.searchsorted(bounds[:, 0], text.spans[:, 0], side="right") - 1
    inside = (at >= 0) & (text.spans[:, 0] < bounds[at, 1]) & (text.spans[:, 0] < text.spans[:, 1])
    return np.where(inside, at, NO_WORD)


def window_targets(
    cut: Sequence[tuple[Encoded, Annotation, Span]], cutter: Cutter, task: Task
) -> NDArray[Any]:
    """What is true of windows, for `loss_targets`: int64 [n, L], or float32 [n, L, 2]."""
    lengths = [cutter.before(text) + stop - start for text, _, (start, stop) in cut]
    longest = max(lengths) + len(cutter.layout.after)
    if isinstance(task, TokenClassification):
        number = {tag: i for i, tag in enumerate(task.spec.outputs)}
        tags = np.full((len(cut), longest), IGNORED, np.int64)
        for row, (text, truth, window) in zip(tags, cut, strict=True):
            assert isinstance(truth, TaggedText)
            _put_tags(row[cutter.before(text) :], text, truth, window, number)
        return tags
    reach = np.full((len(cut), longest, 2), OUT_OF_REACH, np.float32)
    for ends, (text, truth, window) in zip(reach, cut, strict=True):
        assert isinstance(truth, Question)
        _put_ends(ends, text, truth, window, cutter.before(text))
    return reach


def said_of(
    text: Encoded,
    truth: Annotation,
    windows: Sequence[tuple[Span, Floats]],
    cutter: Cutter,
    task: Task,
) -> Said:
    """What a network's outputs for all windows of a text say of it.

    Args:
        text: Its tokens.
        truth: Its words, or its question; what is true of them is not looked at.
        windows: Each with `Task.probabilities` of its input's positions, [L, outputs].
        cutter: That made them.
        task: What is predicted.
    """
    offset = cutter.before(text)
    shown = [
        (start, stop, outputs[offset : offset + stop - start], outputs)
        for (start, stop), outputs in windows
    ]
    if isinstance(task, TokenClassification):
        assert isinstance(truth, TaggedText)
        parts = [(start, stop, own) for start, stop, own, _ in shown]
        return _of_words(text, truth, parts, task.n_outputs)
    assert isinstance(task, QuestionAnswering)
    return task.spans(
        [
            Window(own[:, 0], own[:, 1], text.spans[start:stop], float(outputs[0].sum()))
            for start, stop, own, outputs in shown
        ]
    )


def _of_words(
    text: Encoded, truth: TaggedText, windows: Sequence[tuple[int, int, Floats]], n_outputs: int
) -> Floats:
    """Each word's probabilities, from the window that shows most around its first token.

    A word of which the tokenizer makes nothing has no entity.
    """
    found = np.zeros((len(truth.words), n_outputs), np.float32)
    found[:, 0] = 1
    seen = np.full(len(truth.words), -1, np.int64)
    first = first_tokens(text, truth.words)
    for start, stop, probs in windows:
        tokens = np.flatnonzero(first[start:stop] != NO_WORD)
        words = first[start + tokens]
        around = np.minimum(tokens, stop - start - 1 - tokens)
        better = around > seen[words]
        found[words[better]] = probs[tokens[better]]
        seen[words[better]] = around[better]
    return found


def _put_tags(
    row: NDArray[np.int64],
    text: Encoded,
    truth: TaggedText,
    window: Span,
    number: dict[str, int],
) -> None:
    """Tags for the first token of each word, and for what raw texts will have as words inside it.

    Data has words such as "Coca-Cola" and "U.S.", of which tokenizers make several: without tags
    of their own, a network would never have learnt what to say at "-" and at "Cola".
    """
    start, stop = window
    around = _tokens_words(text, truth.words)
    first = _firsts(around)
    for token in np.flatnonzero(around[start:stop] != NO_WORD):
        tag = truth.tags[around[start + token]]
        if first[start + token] != NO_WORD:
            row[token] = number[tag]
        elif _begins_part(truth.text, text.spans[start + token - 1], text.spans[start + token]):
            row[token] = number[tag if tag == OUTSIDE else f"I-{tag[2:]}"]


def _begins_part(text: str, before: Indices, own: Indices) -> bool:
    """Whether a token within a word is where a tokenizer may begin another: at another kind of
    character, and at any punctuation.
    """
    kinds = [_kind(text[max(0, before[1] - 1)]), _kind(text[own[0]])]
    return kinds[0] != kinds[1] or kinds[1] == "P"


def _kind(character: str) -> str:
    return unicodedata.category(character)[0]


def _put_ends(
    row: NDArray[np.float32], text: Encoded, truth: Question, window: Span, offset: int
) -> None:
    """The first annotated answer, if the window shows all of it; else the first token."""
    start, stop = window
    row[0] = 0
    row[offset : offset + stop - start] = 0
    at = _answer_tokens(text, truth)
    if at is not None and start <= at[0] and at[1] < stop:
        row[offset + at[0] - start, 0] = 1
        row[offset + at[1] - start, 1] = 1
    else:
        row[0] = 1


def _answer_tokens(text: Encoded, truth: Question) -> Span | None:
    """The first and last token of the first annotated answer; None if there is none."""
    if not truth.answers:
        return None
    answer = truth.answers[0]
    end = answer.start + len(answer.text)
    touched = np.flatnonzero((text.spans[:, 0] < end) & (text.spans[:, 1] > answer.start))
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


def _trimmed(text: str, start: int, end: int) -> Span:
    """Without the white space before a token, which some tokenizers count in."""
    while start < end and text[start].isspace():
        start += 1
    return start, end


def _is_punctuation(character: str) -> bool:
    return _kind(character) == "P"


def _find(whole: Sequence[int], part: Sequence[int], start: int) -> int:
    return next(i for i in range(start, len(whole)) if list(whole[i : i + len(part)]) == list(part))
