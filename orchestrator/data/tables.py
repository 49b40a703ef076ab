"""Manifests: CSV, JSONL and Parquet as one interface, read as a stream."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data import locations
from orchestrator.errors import DataError, listing

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
_MOST_CELL = 1 << 30  # characters; Python's own limit of 131,072 refuses long documents
_PARQUET_ROWS = 32  # rows with their image bytes that are in memory at once

# Usual column names, best first.
_FILE_NAMES = ("path", "file", "filename", "file_name", "filepath", "file_path")
INPUT_NAMES = (
    "image",
    *_FILE_NAMES,
    "image_path",
    "image_file",
    "image_name",
    "img",
    "img_path",
    "uri",
    "url",
    "bytes",
    "image_bytes",
)
TEXT_NAMES = (
    "text",
    "sentence",
    "document",
    "content",
    "body",
    "review",
    "comment",
    "article",
    "message",
    "title",
    *_FILE_NAMES,
    "text_path",
    "uri",
    "url",
)
# Text columns of these names hold where a text lies; the others hold the text.
PATH_NAMES = frozenset({*_FILE_NAMES, "text_path", "uri", "url"})
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "classes",
    "target",
    "targets",
    "category",
    "categories",
    "tag",
    "tags",
    "class_name",
    "label_name",
)


@dataclass(frozen=True, slots=True)
class Cells:
    """One row: the input as bytes, path, text or `{bytes, path}`, and the labels as written."""

    input: object
    label: object


class Table(Protocol):
    """A manifest or data set with named columns."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""

    @property
    def version(self) -> str:
        """Changes when the content may have changed."""

    @property
    def base(self) -> str:
        """The folder that relative paths start from."""

    @property
    def preferred(self) -> tuple[str | None, str | None]:
        """The input and label columns that the format itself marks as such."""

    def rows(self, source: str, label: str) -> Iterator[Cells]:
        """The cells of two columns, row by row."""

    def records(self, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The cells of some columns, row by row."""


@dataclass(frozen=True)
class Manifest(ABC):
    """What the three file formats share."""

    location: str
    columns: tuple[str, ...]
    preferred: tuple[None, None] = (None, None)

    @abstractmethod
    def records(self, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The cells of some columns, row by row."""

    def rows(self, source: str, label: str) -> Iterator[Cells]:
        """The cells of two columns, row by row."""
        for cells in self.records((source, label)):
            yield Cells(*cells)

    @property
    def version(self) -> str:
        """Size and modification time."""
        return locations.version_of(self.location)

    @property
    def base(self) -> str:
        """The folder that the manifest is in."""
        return locations.parent(self.location)


class DelimitedManifest(Manifest):
    """CSV (comma or semicolon) or TSV, UTF-8 with a header row; every cell is text."""

    @classmethod
    def open(cls, location: str) -> DelimitedManifest:
        """Read the header."""
        header = next((cells for _, cells in cls._lines(location)), None)
        if header is None:
            raise DataError(
                f"{location}: the file is empty. Write a header row and a row an example"
            )
        return cls(location, tuple(name.strip() for name in header))

    def rows(self, source: str, label: str) -> Iterator[Cells]:
        """The cells of two columns, the input without white space around it."""
        for cell, of_label in self.records((source, label)):
            yield Cells(str(cell).strip(), of_label)

    def records(self, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The cells of some columns, row by row; a row of another width is refused."""
        places = [self.columns.index(name) for name in columns]
        lines = self._lines(self.location)
        next(lines)
        for number, cells in lines:
            if len(cells) != len(self.columns):
                raise DataError(
                    f"{self.location}, line {number}: {len(cells)} cells where the header has "
                    f"{len(self.columns)}. Put cells that contain the delimiter in quotes"
                )
            yield tuple(cells[place] for place in places)

    @staticmethod
    def _lines(location: str) -> Iterator[tuple[int, list[str]]]:
        """Line numbers and cells of the lines that are not blank, the header first."""
        with locations.open_binary(location) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            csv.field_size_limit(_MOST_CELL)
            try:
                first = text.readline()
                text.seek(0)
                reader = csv.reader(text, delimiter=_delimiter(first), strict=True)
                for cells in reader:
                    if cells:
                        yield reader.line_num, cells
            except UnicodeDecodeError as err:
                raise DataError(f"{location}: not UTF-8 ({err.reason}). Save it as UTF-8") from err
            except csv.Error as err:
                raise DataError(f"{location}: not readable as CSV: {err}") from err


class JsonLinesManifest(Manifest):
    """One JSON object a line, UTF-8."""

    @classmethod
    def open(cls, location: str) -> JsonLinesManifest:
        """Read the keys of the first object."""
        first = next(cls._objects(location), None)
        if first is None:
            raise DataError(f"{location}: the file is empty. Write one JSON object an example")
        return cls(location, tuple(first))

    def records(self, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The values of some keys, line by line; an absent key is null."""
        for value in self._objects(self.location):
            yield tuple(value.get(name) for name in columns)

    @staticmethod
    def _objects(location: str) -> Iterator[dict[str, object]]:
        with locations.open_binary(location) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _json_object(line, f"{location}, line {number}")


class ParquetManifest(Manifest):
    """Parquet with paths, bytes, or the `{bytes, path}` of `datasets` in the input column."""

    @classmethod
    def open(cls, location: str) -> ParquetManifest:
        """Read the schema."""
        with locations.open_binary(location) as file:
            try:
                return cls(location, tuple(pq.ParquetFile(file).schema_arrow.names))
            except (pa.ArrowException, OSError) as err:
                raise DataError(f"{location}: not readable as Parquet: {err}") from err

    def records(self, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The cells of some columns, a few rows in memory at a time."""
        with locations.open_binary(self.location) as file:
            parquet = pq.ParquetFile(file, pre_buffer=False)
            wanted = list(dict.fromkeys(columns))
            batches = parquet.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted)
            try:
                for batch in batches:
                    yield from arrow_records(batch.column(name) for name in columns)
            except (pa.ArrowException, OSError) as err:
                raise DataError(f"{self.location}: damaged Parquet: {err}") from err


def open_manifest(location: str) -> Manifest:
    """The manifest at `location`, its format told by the suffix.

    Raises:
        DataError: Another suffix, or a file that is not what its suffix says.
    """
    match PurePosixPath(location).suffix.lower():
        case ".csv" | ".tsv":
            return DelimitedManifest.open(location)
        case ".jsonl" | ".ndjson":
            return JsonLinesManifest.open(location)
        case ".parquet" | ".pq":
            return ParquetManifest.open(location)
        case suffix:
            raise DataError(
                f"{location}: {suffix or 'no suffix'} is no manifest format. "
                f"Use a class-per-folder tree or one of {listing(SUFFIXES)}"
            )


def arrow_records(columns: Iterable[Any]) -> Iterator[tuple[object, ...]]:
    """Rows of Arrow columns of equal length, one Python value at a time."""
    for cells in zip(*columns, strict=True):
        yield tuple(cell.as_py() for cell in cells)


def find_column(
    table: Table, location: str, *, role: str, wanted: str | None, names: Sequence[str]
) -> str:
    """The column that plays `role`: the one asked for, the format's own, or the first known name.

    Args:
        table: Where to look.
        location: For messages.
        role: `input` or `label`, as in the spec's `input_column` and `label_column`.
        wanted: What the spec says.
        names: Usual names, best first; case does not matter.

    Raises:
        DataError: There is no such column.
    """
    has = f"It has {listing(table.columns)}"
    if wanted is not None:
        if wanted not in table.columns:
            raise DataError(f"{location}: data.{role}_column {wanted!r} is no column. {has}")
        return wanted
    marked = table.preferred[0 if role == "input" else 1]
    if marked is not None:
        return marked
    by_name = {column.casefold(): column for column in reversed(table.columns)}
    found = next((by_name[name] for name in names if name in by_name), None)
    if found is None:
        raise DataError(
            f"{location}: no column is named like an {role} column ({listing(names)}). "
            f"{has}. Name one in data.{role}_column"
        )
    return found


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _json_object(line: bytes, where: str) -> dict[str, object]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as err:
        raise DataError(f"{where}: not JSON: {err}") from err
    if not isinstance(value, dict):
        raise DataError(f"{where}: {type(value).__name__}, where a JSON object is expected")
    return value
