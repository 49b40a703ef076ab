"""Images that arrive as bytes in a table, kept in one memory-mapped Arrow file.

Written as a stream, one record batch after another, so that no more than a batch is ever in
memory, and named by the SHA-256 of its images.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

BATCH_BYTES = 32 * 1024 * 1024
_SCHEMA = pa.schema([pa.field("bytes", pa.large_binary(), nullable=False)])


class BlobWriter:
    """Appends byte strings to a new file in `folder`; use as a context, then `close`."""

    def __init__(self, folder: Path, *, batch_bytes: int = BATCH_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._batch_bytes = batch_bytes
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._digest = hashlib.sha256()
        self.count = 0
        self._path = folder / f"{uuid.uuid4().hex}.partial"
        self._writer = pa.ipc.new_file(str(self._path), _SCHEMA)

    def add(self, data: bytes) -> int:
        """Append `data` and return its row."""
        self._digest.update(len(data).to_bytes(8, "little"))
        self._digest.update(data)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= self._batch_bytes:
            self._flush()
        self.count += 1
        return self.count - 1

    def close(self) -> Path:
        """Finish the file and return its lasting, content-addressed path."""
        self._flush()
        self._writer.close()
        sync_file(self._path)
        lasting = self._folder / f"{self._digest.hexdigest()}.arrow"
        return self._path.replace(lasting)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._pending:
            column = pa.array(self._pending, pa.large_binary())
            self._writer.write_batch(pa.record_batch([column], schema=_SCHEMA))
            self._pending, self._pending_bytes = [], 0


class Blobs:
    """The byte strings of one file by row; memory-mapped, safe to share between threads."""

    def __init__(self, path: Path) -> None:
        table = map_table(path)
        self._chunks: list[Any] = table.column("bytes").chunks
        self._ends = np.cumsum([len(chunk) for chunk in self._chunks], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> bytes:
        chunk = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[chunk - 1]) if chunk else 0
        value: bytes = self._chunks[chunk][row - first].as_py()
        return value


def map_table(path: Path) -> Any:
    """The table in an Arrow IPC file, its columns still on disk."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_table(path: Path, table: Any) -> None:
    """Write `table` as one record batch; readers see the whole new file or the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with pa.ipc.new_file(str(partial), table.schema) as writer:
            for batch in table.combine_chunks().to_batches():
                writer.write_batch(batch)
        sync_file(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until the bytes of `path` are on disk; pyarrow's own streams cannot."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
