"""Every image or text decoded once, before any compute: its content hash, or why it has none.

What was learnt is kept by (location, file, size, modification time, decoder), so that a second
start on unchanged data decodes nothing, and one on grown data decodes what is new.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
from PIL import Image, features

from orchestrator.data import locations
from orchestrator.data.blobs import Blobs, map_table, write_table
from orchestrator.data.decoding import MAX_PIXELS, decode_rgb
from orchestrator.data.rows import Reading, Row
from orchestrator.data.texts import decoded_text, text_hash
from orchestrator.errors import DataError, UnreadableExample
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import Modality

Progress = Callable[[int, int], None]  # examples done, examples in all

_FORMAT = 2  # of stored scans
_BLOCK = 256  # examples between two calls of progress


@dataclass(frozen=True, slots=True)
class Scanned:
    """What decoding an example gave.

    Attributes:
        content: The hash of its pixels or its text.
        fault: The reason why there are none.
        assumed: Whether a text's encoding had to be assumed.
    """

    content: str = ""
    fault: str = ""
    assumed: bool = False


def pixel_hash(image: Image.Image) -> str:
    """BLAKE2b of size and pixels of an RGB image: equal for equal images in any file format."""
    digest = hashlib.blake2b(
        f"{image.mode} {image.width} {image.height}\n".encode(), digest_size=16
    )
    digest.update(image.tobytes())
    return digest.hexdigest()


def scan(
    readings: Sequence[Reading],
    *,
    modality: Modality = "image",
    cache: Path,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> list[list[Scanned]]:
    """Decode every example of `readings` that is not known yet.

    Interrupted, it keeps what it has done.

    Args:
        readings: The locations; one list of results comes back for each, in the order of its rows.
        modality: What the examples are.
        cache: Local folder that outlives the process.
        threads: How many decode at once; Pillow decodes outside of Python's lock. As many as there
            are cores when not given.
        max_pixels: Above which an image counts as undecodable.
        progress: Called with the number of examples done and of all.
    """
    total = sum(len(reading.rows) for reading in readings)
    done = 0
    results = []
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for reading in readings:
            scans: list[Scanned] = []
            with closing(_scan_blocks(reading, pool, modality, cache, max_pixels)) as blocks:
                for block in blocks:
                    scans += block
                    done += len(block)
                    if progress is not None:
                        progress(done, total)
            results.append(scans)
    return results


def _scan_blocks(
    reading: Reading, pool: ThreadPoolExecutor, modality: Modality, cache: Path, max_pixels: int
) -> Generator[list[Scanned], None, None]:
    decoder = [max_pixels, PIL.__version__, features.version("jpg")]
    identity = [_FORMAT, reading.location, modality, *(decoder if modality == "image" else ())]
    store = _ScanStore(cache / "scans" / f"{digest_of(identity)}.arrow")
    scanner = _Scanner(reading, store, modality, max_pixels)
    try:
        for start in range(0, len(reading.rows), _BLOCK):
            rows = reading.rows[start : start + _BLOCK]
            known = [scanner.known(row) for row in rows]
            unknown = (row for row, found in zip(rows, known, strict=True) if found is None)
            decoded = pool.map(scanner.scan, unknown)
            yield [found or next(decoded) for found in known]
    finally:
        store.save()


class _Scanner:
    """Scans rows of one reading; used by several threads."""

    def __init__(
        self, reading: Reading, store: _ScanStore, modality: Modality, max_pixels: int
    ) -> None:
        self._blobs = Blobs(reading.blobs) if reading.blobs is not None else None
        self._blobs_version = reading.blobs.stem if reading.blobs is not None else ""
        self._store = store
        self._modality = modality
        self._max_pixels = max_pixels

    def known(self, row: Row) -> Scanned | None:
        """What an earlier run found, if that can be told without asking for the file's version."""
        version = self._blobs_version if row.blob >= 0 else row.version
        return self._store.known.get((row.uri, version)) if version else None

    def scan(self, row: Row) -> Scanned:
        """The content hash of `row`'s example. A file that cannot be read now is not remembered."""
        try:
            version = self._version(row)
            known = self._store.known.get((row.uri, version))
            if known is None:
                known = self._decode(row)
                self._store.new[row.uri, version] = known
        except OSError as err:
            return Scanned(fault=f"cannot be read: {err.strerror or err or type(err).__name__}")
        except (DataError, ValueError) as err:  # no such file system, or a path with a NUL
            return Scanned(fault=f"cannot be read: {err}")
        return known

    def _version(self, row: Row) -> str:
        if row.blob >= 0:
            return self._blobs_version
        return row.version or locations.version_of(row.uri)

    def _decode(self, row: Row) -> Scanned:
        data: bytes | Path
        if row.blob >= 0:
            assert self._blobs is not None
            data = self._blobs[row.blob]
        else:
            local = not locations.is_uri(row.uri)
            data = Path(row.uri) if local else locations.read_bytes(row.uri)
        try:
            if self._modality == "text":
                raw = data.read_bytes() if isinstance(data, Path) else data
                decoded = decoded_text(raw)
                return Scanned(content=text_hash(decoded.text), assumed=decoded.assumed)
            return Scanned(content=pixel_hash(decode_rgb(data, max_pixels=self._max_pixels)))
        except UnreadableExample as err:
            return Scanned(fault=err.reason)


class _ScanStore:
    """Scans of one location by (uri, version), on disk between runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[tuple[str, str], Scanned] = self._load()
        self.new: dict[tuple[str, str], Scanned] = {}

    def save(self) -> None:
        """Write what is new along with what was known."""
        if not self.new:
            return
        merged = self.known | self.new
        table = pa.table(
            {
                "uri": pa.array([uri for uri, _ in merged], pa.large_string()),
                "version": pa.array([version for _, version in merged], pa.large_string()),
                "content": pa.array([s.content for s in merged.values()], pa.large_string()),
                "fault": pa.array([s.fault for s in merged.values()], pa.large_string()),
                "assumed": pa.array([s.assumed for s in merged.values()], pa.bool_()),
            }
        )
        write_table(self._path, table)

    def _load(self) -> dict[tuple[str, str], Scanned]:
        try:
            table = map_table(self._path)
        except (OSError, pa.ArrowException):  # none yet, or cut short by a crash: decode again
            return {}
        names = ("uri", "version", "content", "fault", "assumed")
        columns: list[Any] = [table.column(name).to_pylist() for name in names]
        return {
            (uri, version): Scanned(content, fault, assumed)
            for uri, version, content, fault, assumed in zip(*columns, strict=True)
        }
