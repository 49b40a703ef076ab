"""A location → rows of texts that answers point into: tagged words, or questions on a context."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from orchestrator.data import locations
from orchestrator.data.audit import AuditFinding
from orchestrator.data.blobs import BlobWriter
from orchestrator.data.conll import parse_conll
from orchestrator.data.hub_datasets import (
    is_hub_id,
    is_saved_dataset,
    open_hub_dataset,
    open_saved_dataset,
)
from orchestrator.data.labels import LabelError
from orchestrator.data.rows import READINGS_FORMAT, Reading, Row, store_reading, stored_reading
from orchestrator.data.squad_files import Written, parse_squad, placed, written_answers
from orchestrator.data.tables import Table, find_column, open_manifest
from orchestrator.data.texts import decoded_text, encoded_text
from orchestrator.errors import DataError, UnreadableExample, listing
from orchestrator.spec.data import DataSpec
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import TaskKind
from orchestrator.tasks.annotations import (
    SEPARATOR,
    Annotation,
    Answer,
    Question,
    TaggedText,
    text_of,
    to_json,
)
from orchestrator.tasks.question_answering import ANSWER, NO_ANSWER
from orchestrator.tasks.tags import TagError, as_iob2, kinds_of, scheme_of

WORD_NAMES = ("tokens", "words", "token", "sentence", "text")
TAG_NAMES = ("ner_tags", "tags", "ner", "labels", "label", "tag")
QUESTION_NAMES = ("question", "query")
CONTEXT_NAMES = ("context", "passage", "paragraph", "document", "text")
ANSWER_NAMES = ("answers", "answer", "label")
_TABLES = frozenset({".csv", ".jsonl", ".ndjson", ".parquet", ".pq"})
_ASKED = _TABLES | {".json"}
_UNSAFE = str.maketrans({SEPARATOR: " ", "\ufeff": " "})  # each for one, so that places stay


def read_annotated(
    place: str, spec: DataSpec, *, split: str, task: TaskKind, cache: Path
) -> Reading:
    """The rows of `place`, streamed into `cache` once.

    Args:
        place: A normal location.
        spec: Gives the columns of a table.
        split: Chosen where a data set has several.
        task: Token classification or question answering.
        cache: Local folder that outlives the process.

    Raises:
        DataError: There is nothing there, or it cannot be read as annotated texts.
    """
    source = _Source(place, spec, split, task, cache)
    stored = cache / "readings" / f"{digest_of(source.identity())}.arrow"
    with contextlib.suppress(OSError, pa.ArrowException):
        return stored_reading(stored, place)
    with BlobWriter(cache / "blobs") as writer:
        if task == "token-classification":
            reader: _Tagged | _Asked = _Tagged(place)
        else:
            reader = _Asked(place, spec.bad_fraction)
        rows = tuple(
            Row(
                f"{place}#{number}",
                reader.labels(annotation),
                writer.add(encoded_text(text_of(annotation))),
                annotation=to_json(annotation),
                group=reader.group(annotation),
            )
            for number, annotation in reader.annotations(source.records())
        )
        if not rows:
            raise DataError(f"{place}: no annotated text in it. {source.expected}")
        blobs = writer.close()
    findings = (*source.findings, *reader.findings())
    reading = Reading(place, rows, blobs, findings)
    store_reading(stored, reading)
    return reading


class _Source:
    """A location's records as they are written: (words, tags), or (question, context, answers)."""

    def __init__(self, place: str, spec: DataSpec, split: str, task: TaskKind, cache: Path) -> None:
        self._place, self._spec, self._task = place, spec, task
        self.findings: list[AuditFinding] = []
        self.expected = (
            "Give a CoNLL file, JSONL or Parquet with the columns tokens and tags, a folder of "
            "save_to_disk, or hub:OWNER/NAME"
            if task == "token-classification"
            else "Give a SQuAD JSON file, JSONL, Parquet or CSV with the columns question, context "
            "and answers, a folder of save_to_disk, or hub:OWNER/NAME"
        )
        self._table = self._open_table(split, cache)

    def identity(self) -> list[Any]:
        """What decides the rows."""
        version = locations.version_of(self._place) if self._table is None else self._table.version
        columns = [self._spec.input_column, self._spec.label_column]
        return [
            READINGS_FORMAT,
            self._place,
            version,
            columns,
            self._task,
            self._spec.bad_fraction,
        ]

    def records(self) -> Iterator[tuple[Any, ...]]:
        """As written."""
        if self._table is not None:
            yield from self._table.records(self._columns(self._table))
        elif self._task == "question-answering":
            yield from parse_squad(locations.read_bytes(self._place), self._place)
        else:
            try:
                decoded = decoded_text(locations.read_bytes(self._place))
            except UnreadableExample as err:
                raise DataError(f"{self._place}: {err.reason}. {self.expected}") from err
            yield from parse_conll(decoded.text, self._place)
            if decoded.assumed:
                message = f"{self._place} is not UTF-8 and was read as Windows-1252"
                self.findings.append(AuditFinding.of("encoding", "note", message, [self._place]))

    def _open_table(self, split: str, cache: Path) -> Table | None:
        """The table of a location; None for a CoNLL or SQuAD file."""
        place = self._place
        if not place.startswith("hub:") and locations.exists(place):
            if locations.is_folder(place):
                if is_saved_dataset(place):
                    return open_saved_dataset(place, split=split)
                raise DataError(
                    f"{place}: a folder that save_to_disk has not written. {self.expected}"
                )
            suffix = PurePosixPath(place).suffix.lower()
            others = {".csv", ".json"} if self._task == "token-classification" else set()
            if suffix in others or (self._task == "question-answering" and suffix not in _ASKED):
                raise DataError(
                    f"{place}: {suffix or 'no suffix'} is another format. {self.expected}"
                )
            return open_manifest(place) if suffix in _TABLES else None
        if is_hub_id(place):
            return open_hub_dataset(place, split=split, cache=cache)
        raise DataError(f"data.{split}: {place} does not exist. {self.expected}")

    def _columns(self, table: Table) -> list[str]:
        place, spec = self._place, self._spec
        tagged = self._task == "token-classification"
        label = find_column(
            table,
            place,
            role="label",
            wanted=spec.label_column,
            names=TAG_NAMES if tagged else ANSWER_NAMES,
        )
        source = find_column(
            table,
            place,
            role="input",
            wanted=spec.input_column,
            names=WORD_NAMES if tagged else CONTEXT_NAMES,
        )
        if tagged:
            return [source, label]
        known = {name.casefold(): name for name in reversed(table.columns)}
        question = next((known[name] for name in QUESTION_NAMES if name in known), None)
        if question is None:
            raise DataError(
                f"{place}: no column is named {listing(QUESTION_NAMES)}. It has "
                f"{listing(table.columns)}. Rename the one with the questions"
            )
        return [question, source, label]


class _Faults:
    """What makes rows unusable, told all at once."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._rows: dict[str, list[int]] = defaultdict(list)

    def note(self, fault: str, row: int) -> None:
        self._rows[fault].append(row)

    def raise_all(self) -> None:
        if self._rows:
            parts = [
                f"{len(rows)} rows have {fault}: rows {listing(rows)}"
                for fault, rows in self._rows.items()
            ]
            raise DataError(
                f"{self._place}: {'; '.join(parts)} (the first row is 0). "
                "Complete or remove these rows"
            )


class _Tagged:
    """Words and tags → tagged texts; all of a location is written in one scheme."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._empty: list[str] = []
        self._invalid: dict[str, int] = {}

    def annotations(self, records: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Annotation]]:
        faults = _Faults(self._place)
        sentences: list[tuple[int, list[str], list[str]]] = []
        for number, (words, tags) in enumerate(records):
            try:
                sentences.append((number, _texts(words, "words"), _texts(tags, "tags")))
            except LabelError as fault:
                faults.note(str(fault), number)
                continue
            _, found, of_them = sentences[-1]
            if len(found) != len(of_them):
                faults.note("another number of tags than of words", number)
        faults.raise_all()
        try:
            scheme = scheme_of(tags for _, _, tags in sentences)
        except TagError as err:
            raise DataError(f"{self._place}: {err}") from err
        for number, words, tags in sentences:
            if not any(word.strip() for word in words):
                self._empty.append(f"{self._place}#{number}")
                continue
            iob2, invalid = as_iob2(tags, scheme)
            if invalid:
                self._invalid[f"{self._place}#{number}"] = invalid
            yield number, _joined(words, iob2)

    def labels(self, annotation: Annotation) -> tuple[str, ...]:
        assert isinstance(annotation, TaggedText)
        return kinds_of(annotation.tags)

    def group(self, annotation: Annotation) -> str:
        return ""

    def findings(self) -> Iterator[AuditFinding]:
        yield from _left_out(self._empty, "have no word")
        if self._invalid:
            yield AuditFinding.of(
                "tags",
                "warning",
                f"{sum(self._invalid.values())} tags go on with an entity that has not begun; they "
                "were taken for its beginning. Correct them",
                self._invalid,
                count=sum(self._invalid.values()),
            )


class _Asked:
    """Questions, contexts and answers → questions; of one context all stay in one split."""

    def __init__(self, place: str, bad_fraction: float) -> None:
        self._place, self._bad_fraction = place, bad_fraction
        self._empty: list[str] = []
        self._moved: list[str] = []
        self._absent: list[str] = []
        self._joined: list[str] = []
        self._n = 0

    def annotations(self, records: Iterable[Written]) -> Iterator[tuple[int, Annotation]]:
        faults = _Faults(self._place)
        kept: list[tuple[int, Question]] = []
        for number, (question, context, cell) in enumerate(records):
            self._n += 1
            uri = f"{self._place}#{number}"
            try:
                asked, passage = _text(question, "question"), _text(context, "context")
                written = written_answers(cell)
            except LabelError as fault:
                faults.note(str(fault), number)
                continue
            if not asked.strip() or not passage.strip():
                self._empty.append(uri)
                continue
            found = placed([(text.translate(_UNSAFE), at) for text, at in written], passage)
            if found.absent and not found.answers:
                self._absent.append(uri)
                continue
            if found.moved:
                self._moved.append(uri)
            kept.append((number, Question(asked, passage, found.answers)))
        faults.raise_all()
        yield from self._with_answers_joined(kept)

    def _with_answers_joined(
        self, rows: list[tuple[int, Question]]
    ) -> Iterator[tuple[int, Annotation]]:
        """A row an annotator becomes a question that takes each of their answers.

        Equal rows stay: they are copies. So does one that finds an answer where another finds
        none: they contradict each other.
        """
        given: dict[tuple[str, str], dict[tuple[Answer, ...], None]] = defaultdict(dict)
        for _, asked in rows:
            if asked.answers:
                given[asked.question, asked.context][asked.answers] = None
        differing = {key: answers for key, answers in given.items() if len(answers) > 1}
        told: set[tuple[str, str]] = set()
        for number, asked in rows:
            key = (asked.question, asked.context)
            if key not in differing or not asked.answers:
                yield number, asked
            elif key in told:
                self._joined.append(f"{self._place}#{number}")
            else:
                told.add(key)
                every = dict.fromkeys(itertools.chain.from_iterable(differing[key]))
                yield number, replace(asked, answers=tuple(every))

    def labels(self, annotation: Annotation) -> tuple[str, ...]:
        assert isinstance(annotation, Question)
        return (ANSWER if annotation.answers else NO_ANSWER,)

    def group(self, annotation: Annotation) -> str:
        assert isinstance(annotation, Question)
        return hashlib.blake2b(annotation.context.encode(), digest_size=16).hexdigest()

    def findings(self) -> Iterator[AuditFinding]:
        yield from _left_out(self._empty, "have no question or no context")
        if self._joined:
            told = f"{len(self._joined)} texts ask what another asks of the same context"
            message = f"{told}; their answers were joined"
            yield AuditFinding.of("answers-joined", "note", message, self._joined)
        if self._moved:
            yield AuditFinding.of(
                "answer-start",
                "warning",
                f"{len(self._moved)} texts have answers that do not stand where answer_start says; "
                "the occurrence nearest to it was taken. Correct them",
                self._moved,
            )
        if self._absent:
            bad = len(self._absent) / max(1, self._n) > self._bad_fraction
            told = f"{len(self._absent)} of {self._n} texts do not contain their answers"
            more = (
                f"{told}, more than data.bad_fraction {self._bad_fraction:g} allows. Correct them, "
                "or raise data.bad_fraction"
            )
            yield AuditFinding.of(
                "answer-absent",
                "error" if bad else "warning",
                more if bad else f"{told} and are left out",
                self._absent,
            )


def _left_out(uris: list[str], why: str) -> Iterator[AuditFinding]:
    if uris:
        message = f"{len(uris)} texts {why} and are left out"
        yield AuditFinding.of("empty-text", "warning", message, uris)


def _joined(words: list[str], tags: tuple[str, ...]) -> TaggedText:
    """Words with a space between them, and where they lie."""
    spans, at = [], 0
    for word in words:
        spans.append((at, at + len(word)))
        at += len(word) + 1
    return TaggedText(" ".join(words), tuple(spans), tags)


def _texts(cell: object, what: str) -> list[str]:
    if not isinstance(cell, list | tuple):
        raise LabelError(f"a {type(cell).__name__} where a list of {what} is expected")
    found = []
    for item in cell:
        if isinstance(item, int) and not isinstance(item, bool):
            item = str(item)
        found.append(_text(item, what.removesuffix("s")))
    return found


def _text(cell: object, what: str) -> str:
    if not isinstance(cell, str):
        raise LabelError(f"a {type(cell).__name__} where a {what} is expected")
    return encoded_text(cell.translate(_UNSAFE)).decode()
