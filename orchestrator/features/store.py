"""The FeatureStore: outputs of frozen prefixes, content-addressed, mapped without copying.

One folder an entry, named by its key's digest: `part-00000.arrow`, … hold consecutive rows and
`features.json` names them with their digests. It is written last, so an entry without it is
unfinished: its parts are kept and the rest is computed. Of two writers of the same part the first
wins: their values may differ in rounding, and a sealed part must stay what the manifest says.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.errors import IntegrityError
from orchestrator.spec.durable import file_digest, sync_file, sync_folder, write_json
from orchestrator.spec.frozen import Frozen, digest_of

Float32 = npt.NDArray[np.float32]
ROWS_PER_PART = 512
MANIFEST = "features.json"

# Entries whose bytes this process has verified; they are mapped, so later trials read the same.
_VERIFIED: set[tuple[str, tuple[str, ...]]] = set()


class FeatureKey(Frozen):
    """What decides the values: equal keys, equal features.

    `cut` names the output: `last` or `multi-scale` pooled features. `view` numbers the
    deterministic views of an image; 0 is the evaluation view. An entry's rows are the training and
    validation examples in the data set's order.
    """

    backbone: str
    weights: str
    cut: str
    transform: str
    data: str
    view: int = 0
    dtype: Literal["float32"] = "float32"

    @property
    def digest(self) -> str:
        """The entry's name."""
        return digest_of(self.to_json())


@dataclass(frozen=True)
class Features:
    """Rows of one entry, mapped from disk.

    `parts` are float32 [n, D], each with the rows that follow the part before it.
    """

    parts: tuple[Float32, ...]

    @property
    def width(self) -> int:
        """D."""
        return int(self.parts[0].shape[1])

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def take(self, rows: npt.NDArray[np.int64]) -> Float32:
        """The chosen rows, copied: float32 [n, D].

        Args:
            rows: int64 [n], in any order.
        """
        assert not len(rows) or 0 <= rows.min() <= rows.max() < len(self), "no such rows"
        result = np.empty((len(rows), self.width), np.float32)
        part_rows = len(self.parts[0])
        owner = rows // part_rows
        for part in np.unique(owner):
            here = owner == part
            result[here] = self.parts[part][rows[here] - part * part_rows]
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
            parts = _read_manifest(folder / MANIFEST, key)
        except FileNotFoundError:
            return None
        seal = (str(folder), tuple(parts.values()))
        if seal not in _VERIFIED:
            for name, digest in parts.items():
                if not (folder / name).is_file() or file_digest(folder / name) != digest:
                    raise _damaged(folder / name)
            _VERIFIED.add(seal)
        with contextlib.suppress(OSError):  # a store that is mounted read-only can still be read
            os.utime(folder / MANIFEST)
        return Features(tuple(_map(folder / name) for name in parts))

    def missing(self, key: FeatureKey, *, n_rows: int) -> list[range]:
        """The row ranges that no part holds yet, one a part."""
        folder = self.folder(key)
        return [
            rows for rows in part_ranges(n_rows) if not (folder / _part_name(rows.start)).is_file()
        ]

    def put(self, key: FeatureKey, rows: range, features: Float32) -> None:
        """Write one part.

        Args:
            key: The entry.
            rows: One of `part_ranges`.
            features: float32 [len(rows), D].

        Raises:
            IntegrityError: A feature is not finite.
        """
        assert len(features) == len(rows), f"{len(features)} features for {len(rows)} rows"
        if not np.isfinite(features).all():
            raise IntegrityError(
                f"{key.backbone} gave features that are not finite for rows {rows.start}–"
                f"{rows.stop - 1}. Its weights may be damaged"
            )
        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _part_name(rows.start)
        # Not the process id: containers on two nodes often have the same.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        values = pa.array(np.ascontiguousarray(features, np.float32).ravel())
        column = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
        batch = pa.record_batch([column], names=["features"])
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        sync_file(temporary)
        _publish(temporary, path)
        sync_folder(folder)

    def seal(self, key: FeatureKey, *, n_rows: int) -> Features:
        """Declare the entry finished and map it.

        Raises:
            IntegrityError: A part is missing.
        """
        folder = self.folder(key)
        names = [_part_name(rows.start) for rows in part_ranges(n_rows)]
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise IntegrityError(f"{folder} lacks {', '.join(absent)}. Fill it again")
        parts = {name: file_digest(folder / name) for name in names}
        write_json(folder / MANIFEST, {"key": key.to_json(), "rows": n_rows, "parts": parts})
        return Features(tuple(_map(folder / name) for name in names))


def part_ranges(n_rows: int) -> list[range]:
    """All rows, in consecutive ranges of at most ROWS_PER_PART."""
    return [
        range(start, min(start + ROWS_PER_PART, n_rows))
        for start in range(0, n_rows, ROWS_PER_PART)
    ]


def _publish(temporary: Path, path: Path) -> None:
    """Give a whole file its name, unless another writer's file has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        temporary.unlink()
    except OSError:  # a file system without links
        temporary.replace(path)
    else:
        temporary.unlink()


def _read_manifest(path: Path, key: FeatureKey) -> dict[str, str]:
    """The digests of an entry's parts by name.

    Raises:
        FileNotFoundError: The entry is missing or unfinished.
        IntegrityError: It is no manifest, or another key's.
    """
    try:
        manifest = json.loads(path.read_bytes())
        parts: dict[str, str] = manifest["parts"]
        fits = manifest["key"] == key.to_json() and bool(parts)
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise _damaged(path)
    return parts


def _damaged(path: Path) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged. Delete {path.parent} and its features are computed again"
    )


def _part_name(start: int) -> str:
    return f"part-{start // ROWS_PER_PART:05d}.arrow"


def _map(path: Path) -> Float32:
    """A part as an array on the mapped file."""
    table: Any = pa.ipc.open_file(pa.memory_map(str(path)))
    column = table.get_batch(0).column(0)
    values: Float32 = column.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(len(column), -1)


def batched(rows: npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers in groups of at most `size`, in order."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
