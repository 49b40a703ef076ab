"""A location → rows: one for each labelled example, wherever and however it is stored."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from orchestrator.data import locations
from orchestrator.data.annotated_reading import read_annotated
from orchestrator.data.audit import AuditFinding
from orchestrator.data.blobs import BlobWriter
from orchestrator.data.folders import Tree, read_tree
from orchestrator.data.hub_datasets import (
    is_hub_id,
    is_saved_dataset,
    open_hub_dataset,
    open_saved_dataset,
)
from orchestrator.data.labels import LabelError, many_labels, normal_label, one_label
from orchestrator.data.rows import READINGS_FORMAT, Reading, Row, store_reading, stored_reading
from orchestrator.data.tables import (
    INPUT_NAMES,
    LABEL_NAMES,
    PATH_NAMES,
    TEXT_NAMES,
    Cells,
    Table,
    find_column,
    open_manifest,
)
from orchestrator.data.texts import encoded_text
from orchestrator.errors import DataError, listing
from orchestrator.spec.data import DataSpec
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import TaskKind, by_position, is_multilabel, modality_of


def read_location(
    location: str, spec: DataSpec, *, split: str, task: TaskKind, cache: Path
) -> Reading:
    """The rows of `location`, of whichever kind it is.

    Images that are bytes in a table, and texts in its cells, are streamed into `cache` once, and
    found there again as long as the table's size and modification time stay.

    Args:
        location: What the spec says for this split.
        spec: Gives the columns and the label separator.
        split: `train`, `validation` or `test`; chosen where a data set has several.
        task: What is predicted.
        cache: Local folder that outlives the process.

    Raises:
        DataError: There is nothing there, or it cannot be read as labelled examples.
    """
    place = locations.normal_location(location)
    if by_position(task):
        return read_annotated(place, spec, split=split, task=task, cache=cache)
    if not place.startswith("hub:") and locations.exists(place):
        if not locations.is_folder(place):
            return _read_table(open_manifest(place), place, spec, task, cache)
        if is_saved_dataset(place):
            table = open_saved_dataset(place, split=split)
            return _read_table(table, place, spec, task, cache)
        return _read_folder(place, task)
    if is_hub_id(place):
        table = open_hub_dataset(place, split=split, cache=cache)
        return _read_table(table, place, spec, task, cache)
    raise DataError(
        f"data.{split}: {location} does not exist. Give a class-per-folder tree, a CSV, JSONL or "
        "Parquet manifest, a folder of save_to_disk, hub:OWNER/NAME, or a URI to one of these"
    )


def _read_folder(folder: str, task: TaskKind) -> Reading:
    if is_multilabel(task):
        raise DataError(
            f"{folder}: a folder gives an example one label. For task {task} write a manifest: "
            "CSV with the columns path, labels"
        )
    tree = read_tree(folder, modality_of(task))
    rows = tuple(
        Row(file.uri, (normal_label(name),), version=file.version) for name, file in tree.files
    )
    spellings = _several_spellings((name, normal_label(name)) for name, _ in tree.files)
    return Reading(folder, rows, findings=(*_tree_findings(folder, tree), *spellings))


def _tree_findings(folder: str, tree: Tree) -> Iterator[AuditFinding]:
    if tree.loose:
        yield AuditFinding.of(
            "loose-files",
            "warning",
            f"{folder}: {len(tree.loose)} images lie in no class folder and are not used",
            tree.loose,
        )
    if tree.empty:
        yield AuditFinding.of(
            "empty-class",
            "warning",
            f"{folder}: {len(tree.empty)} class folders have no image and are not used",
            tree.empty,
        )
    if tree.other:
        count = sum(tree.other.values())
        yield AuditFinding.of(
            "other-files",
            "note",
            f"{folder}: {count} files are no images and are not used",
            [f"{n} x {suffix}" for suffix, n in sorted(tree.other.items())],
            count=count,
        )


def _read_table(
    table: Table, location: str, spec: DataSpec, task: TaskKind, cache: Path
) -> Reading:
    of_text = modality_of(task) == "text"
    names = TEXT_NAMES if of_text else INPUT_NAMES
    column = find_column(table, location, role="input", wanted=spec.input_column, names=names)
    label = find_column(table, location, role="label", wanted=spec.label_column, names=LABEL_NAMES)
    identity = [READINGS_FORMAT, location, table.version, column, label, spec.label_separator, task]
    stored = cache / "readings" / f"{digest_of(identity)}.arrow"
    with contextlib.suppress(OSError, pa.ArrowException):
        return stored_reading(stored, location)
    inline = of_text and column.casefold() not in PATH_NAMES
    builder = _RowBuilder(location, table.base, spec.label_separator, task, inline=inline)
    with BlobWriter(cache / "blobs") as writer:
        rows = tuple(builder.rows(table.rows(column, label), writer))
        builder.raise_faults()
        blobs = writer.close() if writer.count else None
    reading = Reading(location, rows, blobs, tuple(_several_spellings(builder.spellings)))
    if blobs is not None:
        store_reading(stored, reading)
    return reading


class _RowBuilder:
    """Turns cells into rows, and collects what is wrong with them, to tell it all at once."""

    def __init__(
        self, location: str, base: str, separator: str, task: TaskKind, *, inline: bool
    ) -> None:
        self._location = location
        self._base = base
        self._separator = separator
        self._task = task
        self._inline = inline
        self._faults: dict[str, list[int]] = defaultdict(list)
        self.spellings: set[tuple[str, str]] = set()

    def rows(self, table: Iterable[Cells], writer: BlobWriter) -> Iterator[Row]:
        """The rows without a fault."""
        for number, cells in enumerate(table):
            try:
                labels = self._labels(cells.label)
                data = _text_of(cells.input) if self._inline else _content_of(cells.input)
            except LabelError as fault:
                self._faults[str(fault)].append(number)
                continue
            if isinstance(data, bytes):
                yield Row(f"{self._location}#{number}", labels, writer.add(data))
            else:
                yield Row(locations.join(self._base, data), labels)

    def raise_faults(self) -> None:
        """Raise DataError if any row had a fault."""
        if self._faults:
            parts = [
                f"{len(rows)} rows have {fault}: rows {listing(rows)}"
                for fault, rows in self._faults.items()
            ]
            raise DataError(
                f"{self._location}: {'; '.join(parts)} (the first row is 0). "
                "Complete or remove these rows"
            )

    def _labels(self, cell: object) -> tuple[str, ...]:
        if is_multilabel(self._task):
            return many_labels(cell, self._separator)
        label = one_label(cell)
        if isinstance(cell, str):
            self.spellings.add((cell.strip(), label))
        return (label,)


def _text_of(cell: object) -> bytes:
    """The text in a cell; an empty one is left to the scan, which counts it."""
    if cell is None:
        return b""
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        raise LabelError(f"a {type(cell).__name__} where a text is expected")
    return encoded_text(cell)


def _content_of(cell: object) -> bytes | str:
    """Bytes or a path, from a plain cell or the `{bytes, path}` of `datasets`."""
    if isinstance(cell, dict):
        data, path = cell.get("bytes"), cell.get("path")
        cell = data if data is not None else path
    if isinstance(cell, bytes) or (isinstance(cell, str) and cell):
        return cell
    if cell is None or cell == "":
        raise LabelError("no input")
    raise LabelError(f"a {type(cell).__name__} for an input, neither a path nor bytes")


def _several_spellings(pairs: Iterable[tuple[str, str]]) -> Iterator[AuditFinding]:
    """A note on labels that were written with different Unicode or spaces, and are now one."""
    written: dict[str, set[str]] = defaultdict(set)
    for raw, label in pairs:
        written[label].add(raw)
    merged = sorted(label for label, forms in written.items() if len(forms) > 1)
    if merged:
        yield AuditFinding.of(
            "spellings",
            "note",
            f"{len(merged)} labels were written in several Unicode forms or with spaces; merged",
            merged,
        )
