"""Files that survive a crash: written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from orchestrator.spec import mirror

_CHUNK_BYTES = 1 << 20


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: temp file, fsync, rename, fsync of the folder.

    A reader sees the old bytes or the new ones, after a crash too. Below a mirror they are sent to
    its URI before the rename.

    Raises:
        StorageError: They could not be sent; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mirror.put(temporary, path)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Durably write `value` as indented JSON; NaN and infinities are refused."""
    write_durably(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def sync_file(path: Path) -> None:
    """Flush a file that another library wrote to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries: renames and new names in it."""
    sync_file(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()
