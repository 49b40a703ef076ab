"""Examples: the labelled images or texts of an experiment, an immutable memory-mapped table."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data import locations
from orchestrator.data.blobs import Blobs, map_table, write_table
from orchestrator.data.decoding import decode_rgb
from orchestrator.data.texts import decode_text
from orchestrator.errors import DataError, IntegrityError, UnreadableExample
from orchestrator.spec.frozen import canonical_json
from orchestrator.tasks.annotations import Annotation, from_json

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_FORMAT = "examples-1"
INDEX = "index.arrow"
_ANNOTATION = "annotation"


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled image or text.

    `content` is the hash of its pixels or characters. One that came in a table is row `blob` of
    blob file number `blob_file`; others lie at `uri`. `annotation` is what is true of its words or
    characters, as `annotations.to_json` writes it; examples of equal `group` stay in one split.
    """

    uri: str
    content: str
    split: Split
    labels: tuple[str, ...]
    blob_file: int = -1
    blob: int = -1
    annotation: str = ""
    group: str = ""


class Examples:
    """The images or texts of all splits with their targets, in a folder.

    `index.arrow` holds where each example is, its content hash, split and target; `blobs.arrow`
    (`blobs-1.arrow`, …) the ones that came in tables. Opening maps files and reads nothing else;
    an instance may be used by several threads, and a pickled one re-opens the folder elsewhere.

    Rows are in canonical order, by content, then split and target: sets with equal `digest` have
    equal row i, so what is computed per row may be stored under the digest. (A JPEG and its
    lossless copy count as equal; read with `least_side` they differ as `decode_rgb` states.)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        table = map_table(folder / INDEX)
        metadata = table.schema.metadata or {}
        if metadata.get(b"format") != _FORMAT.encode():
            raise IntegrityError(
                f"{folder / INDEX} is no index of this version ({_FORMAT}). Prepare the data again"
            )
        self.labels: tuple[str, ...] = tuple(json.loads(metadata[b"labels"]))
        self.multilabel: bool = metadata[b"multilabel"] == b"true"
        self.digest: str = metadata[b"digest"].decode()
        self._blob_files: list[str] = json.loads(metadata[b"blob_files"])
        self._columns = {name: _whole(table.column(name)) for name in table.column_names}

    @classmethod
    def open(cls, folder: str | Path) -> Examples:
        """The examples that `write` or `save` put into `folder`.

        Raises:
            OSError: There is no index.
            IntegrityError: The index was written by another version.
        """
        return cls(Path(folder))

    @classmethod
    def write(
        cls,
        folder: str | Path,
        examples: Iterable[Example],
        *,
        labels: Sequence[str],
        multilabel: bool,
        blobs: Sequence[Path] = (),
    ) -> Examples:
        """Write an index for `examples` into a new folder, and open it.

        A folder that exists is kept when another process has just written the same one.

        Args:
            folder: Local path.
            examples: In any order.
            labels: All class names; they are sorted.
            multilabel: Whether an example has any number of labels rather than one.
            blobs: The files that `blob_file` numbers; linked or copied into the folder.
        """
        names = tuple(sorted(labels))
        rows = sorted(
            examples, key=lambda row: (row.content, row.split, row.labels, row.annotation, row.uri)
        )
        table = _index(rows, names, multilabel, n_blob_files=len(blobs))
        sources = {_blob_name(number): path for number, path in enumerate(blobs)}
        _fill_folder(Path(folder), sources, lambda new: write_table(new / INDEX, table))
        return cls.open(folder)

    def save(self, folder: str | Path) -> Examples:
        """Copy the index and the blobs to another local folder, and open that."""
        # What tokenizers made of the texts goes along: it is a function of them.
        derived = (path.name for path in self.folder.glob("*-*.arrow"))
        names = dict.fromkeys((INDEX, *self._blob_files, *derived))
        sources = {name: self.folder / name for name in names}
        _fill_folder(Path(folder), sources, lambda _: None)
        return Examples.open(folder)

    def __len__(self) -> int:
        return len(self._columns["split"])

    def __repr__(self) -> str:
        return f"Examples({len(self)} rows, {len(self.labels)} labels, {self.digest[:12]})"

    def __reduce__(self) -> tuple[Callable[[str], Examples], tuple[str]]:
        return Examples.open, (str(self.folder),)

    def uri(self, i: int) -> str:
        """Where example `i` came from: a path, a URI, or `table#row`."""
        return str(self._columns["uri"][i].as_py())

    def content(self, i: int) -> str:
        """The hash of the pixels or characters of example `i`; equal for equal ones."""
        return str(self._columns["content"][i].as_py())

    def example(self, i: int) -> Example:
        """Example `i` as data."""
        row = {name: column[i].as_py() for name, column in self._columns.items()}
        numbers = np.flatnonzero(row["target"]) if self.multilabel else [row["target"]]
        return Example(
            uri=row["uri"],
            content=row["content"],
            split=SPLITS[row["split"]],
            labels=tuple(self.labels[int(number)] for number in numbers),
            blob_file=row["blob_file"],
            blob=row["blob"],
            annotation=row.get(_ANNOTATION, ""),
        )

    @property
    def blob_paths(self) -> tuple[Path, ...]:
        """The files that `blob_file` numbers."""
        return tuple(self.folder / name for name in self._blob_files)

    @property
    def annotated(self) -> bool:
        """Whether what is true of an example points into its text."""
        return _ANNOTATION in self._columns

    def annotation(self, i: int) -> Annotation:
        """What is true of example `i`, with its text.

        Raises:
            DataError: As for `text`.
        """
        return from_json(self.text(i), str(self._columns[_ANNOTATION][i].as_py()))

    def targets(self) -> NDArray[np.int64] | NDArray[np.uint8]:
        """Class numbers, int64 [N]; or for a multi-label set 0 and 1, uint8 [N, C]. Read-only."""
        column = self._columns["target"]
        if self.multilabel:
            flat: NDArray[np.uint8] = column.flatten().to_numpy()
            return flat.reshape(len(self), len(self.labels))
        numbers: NDArray[np.int64] = column.to_numpy()
        return numbers

    def indices(self, split: Split) -> NDArray[np.int64]:
        """The rows of `split`, ascending, int64 [n]."""
        return np.flatnonzero(self._splits == SPLITS.index(split)).astype(np.int64)

    def read_bytes(self, i: int) -> bytes:
        """The bytes of example `i`, as they came.

        Raises:
            OSError: Its file is gone or cannot be read.
        """
        blob_file: int = self._columns["blob_file"][i].as_py()
        if blob_file >= 0:
            row: int = self._columns["blob"][i].as_py()
            return self._blobs[blob_file][row]
        return locations.read_bytes(self.uri(i))

    def image(self, i: int, *, least_side: int | None = None) -> Image.Image:
        """Example `i` as an upright RGB image.

        Args:
            i: Its row.
            least_side: As for `decode_rgb`: permits a reduced decode of large JPEGs.

        Raises:
            DataError: The file changed since the audit: it is gone or no longer decodes.
        """
        uri = self.uri(i)
        try:
            return decode_rgb(self._encoded(i, uri), least_side=least_side)
        except UnreadableExample as err:
            raise UnreadableExample(err.reason, source=uri) from err
        except OSError as err:
            raise _gone(uri, err) from err

    def text(self, i: int) -> str:
        """Example `i` as text.

        Raises:
            DataError: The file changed since the audit: it is gone, or no text any more.
        """
        uri = self.uri(i)
        try:
            return decode_text(self.read_bytes(i))
        except UnreadableExample as err:
            raise UnreadableExample(err.reason, source=uri) from err
        except OSError as err:
            raise _gone(uri, err) from err

    def _encoded(self, i: int, uri: str) -> bytes | Path:
        if self._columns["blob"][i].as_py() < 0 and not locations.is_uri(uri):
            return Path(uri)
        return self.read_bytes(i)

    @cached_property
    def _splits(self) -> NDArray[np.int8]:
        splits: NDArray[np.int8] = self._columns["split"].to_numpy()
        return splits

    @cached_property
    def _blobs(self) -> list[Blobs]:
        return [Blobs(self.folder / name) for name in self._blob_files]


def _gone(uri: str, err: OSError) -> DataError:
    return DataError(
        f"{uri}: was there when the data was prepared and cannot be read now: {err}. "
        "Restore it, or prepare the data again"
    )


def digest_of_examples(
    examples: Iterable[Example], *, labels: Sequence[str], multilabel: bool
) -> str:
    """SHA-256 over contents, targets, splits and label set; not over places, names or order."""
    rows = sorted(canonical_json(_identity(row)) for row in examples)
    digest = hashlib.sha256(canonical_json([_FORMAT, sorted(labels), multilabel]))
    for row in rows:
        digest.update(b"\n" + row)
    return digest.hexdigest()


def _identity(row: Example) -> list[Any]:
    content: list[Any] = [row.content, row.split, row.labels]
    return [*content, row.annotation] if row.annotation else content


def _index(
    rows: Sequence[Example], names: tuple[str, ...], multilabel: bool, *, n_blob_files: int
) -> Any:
    number = {name: position for position, name in enumerate(names)}
    metadata = {
        "format": _FORMAT,
        "labels": json.dumps(names),
        "multilabel": json.dumps(multilabel),
        "digest": digest_of_examples(rows, labels=names, multilabel=multilabel),
        "blob_files": json.dumps([_blob_name(k) for k in range(n_blob_files)]),
    }
    annotated = {}
    if any(row.annotation for row in rows):
        annotated[_ANNOTATION] = pa.array([row.annotation for row in rows], pa.large_string())
    return pa.table(
        {
            "uri": pa.array([row.uri for row in rows], pa.large_string()),
            "content": pa.array([row.content for row in rows], pa.large_string()),
            "split": pa.array([SPLITS.index(row.split) for row in rows], pa.int8()),
            "target": _target_column(rows, number, multilabel),
            "blob_file": pa.array([row.blob_file for row in rows], pa.int16()),
            "blob": pa.array([row.blob for row in rows], pa.int64()),
            **annotated,
        }
    ).replace_schema_metadata(metadata)


def _target_column(rows: Sequence[Example], number: dict[str, int], multilabel: bool) -> Any:
    if not multilabel:
        return pa.array([number[row.labels[0]] for row in rows], pa.int64())
    matrix = np.zeros((len(rows), len(number)), np.uint8)
    for position, row in enumerate(rows):
        matrix[position, [number[label] for label in row.labels]] = 1
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), len(number))


def _whole(column: Any) -> Any:
    """A column as the one array it was written as, without a copy."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _blob_name(number: int) -> str:
    return "blobs.arrow" if number == 0 else f"blobs-{number}.arrow"


def _fill_folder(folder: Path, sources: dict[str, Path], write: Callable[[Path], None]) -> None:
    """Make `folder` appear at once, with links to or copies of `sources` and what `write` adds."""
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        for name, source in sources.items():
            _link_or_copy(source, partial / name)
        write(partial)
        _rename_unless_there(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename_unless_there(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / INDEX).exists():
            raise


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
