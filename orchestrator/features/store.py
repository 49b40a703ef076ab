"""The FeatureStore: outputs of frozen prefixes, content-addressed, mapped without copying.

One folder an entry, named by its key's digest: `part-N-SHA256.arrow` hold consecutive rows from row
N, and `features.json` names them. It is written last, so an entry without it is unfinished: its
parts are kept where they are what their names say, and the rest is computed. Of two writers of the
same part the first wins; their values may differ in rounding, and where both have written, the
manifest names one.

Of a store at a URI each node has what its processes have looked up, fetched once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.errors import IntegrityError
from orchestrator.spec import mirror
from orchestrator.spec.durable import file_digest, sync_file, sync_folder, write_json
from orchestrator.spec.frozen import Frozen, digest_of

Float32 = npt.NDArray[np.float32]
Values = npt.NDArray[Any]
ROWS_PER_PART = 128  # so that small data sets, too, are filled by many tasks
MOST_PARTS = 256
MANIFEST = "features.json"
_SHAPE = b"shape"
_PART = re.compile(r"(part-\d{9})-([0-9a-f]{64})\.arrow")

# Entries whose bytes this process has verified; they are mapped, so later trials read the same.
_VERIFIED: set[tuple[str, tuple[str, ...]]] = set()


class FeatureKey(Frozen):
    """What decides the values: equal keys, equal features.

    `cut` names the output: `last` or `multi-scale` pooled features, or `stage-k` activations.
    `view` numbers the fixed views of an image: turned and mirrored ones, of which 0 is the
    evaluation view, or fixed draws of `augment`. An entry's rows are the training and validation
    examples in the data set's order.
    """

    backbone: str
    weights: str
    cut: str
    transform: str
    data: str
    view: int = 0
    augment: str = "none"
    dtype: Literal["float32", "float16"] = "float32"

    @property
    def digest(self) -> str:
        """The entry's name."""
        return digest_of(self.to_json())


@dataclass(frozen=True)
class Features:
    """Rows of one entry, mapped from disk.

    `blocks` are arrays [n, *shape], each with the rows that follow the block before it.
    """

    blocks: tuple[Values, ...]
    _starts: npt.NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts = np.cumsum([0, *(len(block) for block in self.blocks)])
        object.__setattr__(self, "_starts", starts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row: (D,) for pooled features."""
        return tuple(self.blocks[0].shape[1:])

    @property
    def width(self) -> int:
        """D of pooled features."""
        return int(self.blocks[0].shape[1])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, rows: npt.NDArray[np.int64]) -> Values:
        """The chosen rows, copied: [n, *shape] in the entry's type.

        Args:
            rows: int64 [n], in any order.
        """
        assert not len(rows) or 0 <= rows.min() <= rows.max() < len(self), "no such rows"
        result = np.empty((len(rows), *self.shape), self.blocks[0].dtype)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for block in np.unique(owner):
            here = owner == block
            result[here] = self.blocks[block][rows[here] - self._starts[block]]
        return result


class FeatureStore:
    """Entries below one folder, shared by every process that can see it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: FeatureKey) -> Path:
        """Where the entry of `key` lies, or would."""
        return self.root / key.digest[:32]

    def find(self, key: FeatureKey) -> Features | None:
        """The finished entry of `key`, or None when it is missing or unfinished.

        Raises:
            IntegrityError: The manifest or a part is not the bytes that were written.
        """
        folder = self.folder(key)
        try:
            parts, shape = _manifest(folder / MANIFEST, key)
            lacking = _lacking(folder, parts)
            if lacking:  # at a URI it may have been made anew
                mirror.refresh(folder / MANIFEST)
                parts, shape = _manifest(folder / MANIFEST, key)
        except FileNotFoundError:
            return None
        if lacking and not mirror.fetch_files(folder, parts):
            raise _damaged(folder / _lacking(folder, parts)[0])
        _VERIFIED.add(_seal(folder, parts))
        with contextlib.suppress(OSError):  # a store that is mounted read-only can still be read
            os.utime(folder / MANIFEST)
        return Features(tuple(b for name in parts for b in _map(folder / name, shape)))

    def is_finished(self, key: FeatureKey) -> bool:
        """Whether the entry says that it is finished, unread."""
        return MANIFEST in mirror.names(self.folder(key))

    def has(self, key: FeatureKey) -> bool:
        """Whether the entry of `key` is finished; at a URI, without fetching it to see.

        Raises:
            IntegrityError: As for `find`; at a URI a part's bytes are left to whoever reads them.
        """
        folder = self.folder(key)
        if mirror.at_uri(folder) is None:
            return self.find(key) is not None
        mirror.refresh(folder / MANIFEST)
        try:
            parts, _ = _manifest(folder / MANIFEST, key)
        except FileNotFoundError:
            return False
        if gone := sorted(parts.keys() - self._names(key)):
            raise _damaged(folder / gone[0])
        return True

    def remove_damaged(self, key: FeatureKey) -> bool:
        """Remove what is damaged of an entry, so that it can be filled again; whole parts stay.

        Returns:
            Whether anything was.
        """
        with self._repairing(key) as folder:
            mirror.refresh(folder / MANIFEST)
            names = self._names(key)
            try:
                parts, _ = _manifest(folder / MANIFEST, key)
            except FileNotFoundError:
                return False
            except IntegrityError:  # the parts' own names still say what they are
                parts = {name: _digest_in(name) for name in names}
            else:
                for name in names & parts.keys():
                    mirror.fetch_files(folder, {name: parts[name]})
                if not _lacking(folder, parts):
                    return False  # another process has filled it meanwhile
            mirror.remove(folder / MANIFEST)
            for name in {*names, *_lacking(folder, parts)}:
                if not _is_whole(folder / name):
                    mirror.remove(folder / name)
            return True

    def missing(self, key: FeatureKey, *, n_rows: int) -> list[range]:
        """The row ranges that no whole part holds yet, one a part; damaged parts are removed.

        At a URI the bytes of a part are left to whoever reads them.
        """
        folder, there = self.folder(key), self._parts(key)
        if mirror.at_uri(folder) is None:
            for part, name in list(there.items()):
                if not _is_whole(folder / name):
                    (folder / name).unlink(missing_ok=True)
                    del there[part]
        return [rows for rows in part_ranges(n_rows) if part_name(rows) not in there]

    def _names(self, key: FeatureKey) -> set[str]:
        """Names of the parts that the store has, whether the entry is finished or not."""
        return {name for name in mirror.names(self.folder(key)) if name.startswith("part-")}

    def _parts(self, key: FeatureKey) -> dict[str, str]:
        """The file of each part by `part_name`; one of them where two writers have met."""
        matches = map(_PART.fullmatch, sorted(self._names(key), reverse=True))
        return {match[1]: match[0] for match in matches if match}

    @contextlib.contextmanager
    def _repairing(self, key: FeatureKey) -> Iterator[Path]:
        """The folder of an entry, which no other process of this node repairs at once."""
        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def writing(self, key: FeatureKey, rows: range) -> Iterator[PartWriter]:
        """Write one part, block by block; it gets its name when all of it is there.

        Args:
            key: The entry.
            rows: One of `part_ranges`.
        """
        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        # Not the process id: containers on two nodes often have the same.
        temporary = folder / f".{part_name(rows)}.{uuid.uuid4().hex}.tmp"
        try:
            with PartWriter(temporary, key) as writer:
                yield writer
            assert writer.n_rows == len(rows), f"{writer.n_rows} features for {len(rows)} rows"
            sync_file(temporary)
            if part_name(rows) not in self._parts(key):
                path = folder / f"{part_name(rows)}-{file_digest(temporary)}.arrow"
                mirror.put(temporary, path)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(folder)

    def put(self, key: FeatureKey, rows: range, values: Values) -> None:
        """Write one part at once; see `writing`."""
        with self.writing(key, rows) as part:
            part.write(values)

    def seal(self, key: FeatureKey, *, n_rows: int) -> None:
        """Declare the entry finished.

        Args:
            key: The entry.
            n_rows: Of all its parts.

        Raises:
            IntegrityError: A part is missing.
        """
        folder, there = self.folder(key), self._parts(key)
        wanted = [part_name(rows) for rows in part_ranges(n_rows)]
        if absent := [part for part in wanted if part not in there]:
            raise IntegrityError(
                f"{mirror.location_of(folder)} lacks {', '.join(absent)}. Fill it again"
            )
        parts = {there[part]: _digest_in(there[part]) for part in wanted}
        shape = _row_shape(mirror.fetch(folder / there[wanted[0]]))
        content = {"key": key.to_json(), "rows": n_rows, "shape": shape, "parts": parts}
        write_json(folder / MANIFEST, content)


class PartWriter:
    """Appends blocks of rows to one Arrow IPC file."""

    def __init__(self, path: Path, key: FeatureKey) -> None:
        self.n_rows = 0
        self._key = key
        self._open = contextlib.ExitStack()
        self._sink = self._open.enter_context(pa.OSFile(str(path), "wb"))
        self._writer: Any = None

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def write(self, values: Values) -> None:
        """Append rows.

        Args:
            values: [n, *shape], of one shape throughout; cast to the entry's type.

        Raises:
            IntegrityError: A value is not finite in that type.
        """
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(values, self._key.dtype)
        if not np.isfinite(cast).all():
            wide = np.isfinite(values).all()
            raise IntegrityError(
                f"{self._key.backbone} gave {self._key.cut} features "
                + (
                    f"beyond {self._key.dtype}. Set stored_precision: fp32"
                    if wide
                    else "that are not finite. Its weights may be damaged"
                )
            )
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(cast.reshape(-1)), cast[0].size if len(cast) else 1
        )
        schema = pa.schema([("features", column.type)], {_SHAPE: json.dumps(cast.shape[1:])})
        if self._writer is None:
            self._writer = self._open.enter_context(pa.ipc.new_file(self._sink, schema))
        self._writer.write_batch(pa.record_batch([column], schema=schema))
        self.n_rows += len(cast)


def part_ranges(n_rows: int) -> list[range]:
    """All rows, in consecutive ranges of ROWS_PER_PART, or of more so that they are MOST_PARTS."""
    size = max(ROWS_PER_PART, -(-n_rows // MOST_PARTS))
    return [range(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def part_name(rows: range) -> str:
    """What the name of the file with these rows begins with."""
    return f"part-{rows.start:09d}"


def _digest_in(name: str) -> str:
    """The SHA-256 that a part's name says; empty where it says none."""
    match = _PART.fullmatch(name)
    return match[2] if match else ""


def _is_whole(path: Path) -> bool:
    """Whether a part is here, with the bytes that its name says."""
    try:
        return file_digest(path) == _digest_in(path.name)
    except FileNotFoundError:
        return False


def _seal(folder: Path, parts: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """What this process remembers a verified entry by."""
    return (str(folder), tuple(parts.values()))


def _lacking(folder: Path, parts: Mapping[str, str]) -> list[str]:
    """Parts that are not here as they should be; those verified before need only be here."""
    known = _seal(folder, parts) in _VERIFIED
    return [
        name
        for name, digest in parts.items()
        if not (folder / name).is_file() or not (known or file_digest(folder / name) == digest)
    ]


def _manifest(path: Path, key: FeatureKey) -> tuple[dict[str, str], list[int]]:
    """The digests of an entry's parts by name, and the shape of a row.

    Raises:
        FileNotFoundError: The entry is missing or unfinished.
        IntegrityError: It is no manifest, or another key's.
    """
    try:
        manifest = json.loads(mirror.fetch(path).read_bytes())
        parts: dict[str, str] = manifest["parts"]
        shape: list[int] = manifest["shape"]
        fits = manifest["key"] == key.to_json() and bool(parts)
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise _damaged(path)
    return parts, shape


def _damaged(path: Path) -> IntegrityError:
    where = mirror.location_of(path.parent)
    return IntegrityError(
        f"{where}/{path.name} is damaged. Delete {where} and its features are computed again"
    )


def _map(path: Path, shape: Sequence[int]) -> Iterator[Values]:
    """The blocks of a part as arrays on the mapped file."""
    table: Any = pa.ipc.open_file(pa.memory_map(str(path)))
    for n in range(table.num_record_batches):
        column = table.get_batch(n).column(0)
        values: Values = column.flatten().to_numpy(zero_copy_only=True)
        yield values.reshape(len(column), *shape)


def _row_shape(path: Path) -> list[int]:
    table: Any = pa.ipc.open_file(pa.memory_map(str(path)))
    shape: list[int] = json.loads(table.schema.metadata[_SHAPE])
    return shape


def batched(rows: npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers in groups of at most `size`, in order."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
