"""Where bytes lie: local paths, read by plain `open`, and fsspec URIs (s3://, gs://, memory://)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import fsspec

from orchestrator.errors import DataError

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*(::|://)")

# What the file systems of fsspec report instead of a modification time, best first.
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True, slots=True)
class Located:
    """A file, and a word that changes when its bytes do."""

    uri: str
    version: str


def is_uri(location: str) -> bool:
    """Whether `location` is read through fsspec rather than by `open`."""
    return _SCHEME.match(location) is not None


def normal_location(location: str) -> str:
    """`location` with `file://` and `~` resolved to a plain path; other URIs unchanged."""
    if location.startswith("file://"):
        return unquote(location.removeprefix("file://"))
    return location if is_uri(location) else str(Path(location).expanduser())


def join(folder: str, name: str) -> str:
    """The place of `name` as written in a manifest in `folder`: absolute ones stay as they are."""
    if is_uri(name):
        return normal_location(name)
    if is_uri(folder):
        return name if name.startswith("/") else f"{folder.rstrip('/')}/{name.removeprefix('./')}"
    return str(Path(folder, name))


def parent(location: str) -> str:
    """The folder that `location` is in."""
    return location.rpartition("/")[0] if is_uri(location) else str(Path(location).parent)


def open_binary(location: str) -> BinaryIO:
    """The file at `location`, open for reading; the caller closes it."""
    if is_uri(location):
        fs, path = _file_system(location)
        return cast(BinaryIO, fs.open(path, "rb"))
    return Path(location).open("rb")


def read_bytes(location: str) -> bytes:
    """All bytes of the file at `location`."""
    with open_binary(location) as file:
        return file.read()


def is_folder(location: str) -> bool:
    """Whether `location` is a folder, or a prefix with files under it."""
    if is_uri(location):
        fs, path = _file_system(location)
        return bool(fs.isdir(path))
    return Path(location).is_dir()


def exists(location: str) -> bool:
    """Whether a file or folder is at `location`."""
    if is_uri(location):
        fs, path = _file_system(location)
        return bool(fs.exists(path))
    return Path(location).exists()


def version_of(location: str) -> str:
    """Size and modification time (or the store's own tag) of a file.

    Raises:
        OSError: It is not there or may not be read.
    """
    if is_uri(location):
        fs, path = _file_system(location)
        return _version_of_info(fs.info(path))
    status = Path(location).stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def files_under(folder: str) -> Iterator[tuple[str, Located]]:
    """Every file below `folder`: its path relative to it, with `/`, and where it is.

    Links to files are followed, links to folders only directly below `folder`, so that a cycle of
    links ends.
    """
    if is_uri(folder):
        yield from _remote_files(folder)
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        for path in _walk(entry.path) if entry.is_dir() else (entry.path,):
            yield path.removeprefix(folder).lstrip("/"), Located(path, _version_or_none(path))


def under_folder(folder: str) -> Iterator[str]:
    """Names of the folders directly below `folder`, empty ones included."""
    if is_uri(folder):
        fs, root = _file_system(folder)
        found = fs.ls(root, detail=True)
        names = [info["name"].rstrip("/") for info in found if info["type"] == "directory"]
        yield from sorted(name.rpartition("/")[2] for name in names)
        return
    yield from sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _file_system(uri: str) -> tuple[Any, str]:
    """The file system behind a URI, and the path in it."""
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as err:  # a driver not installed, a scheme nobody knows
        raise DataError(f"{uri}: cannot be reached: {err}") from err
    return fs, path


def _walk(folder: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        yield from (f"{root}/{name}" for name in sorted(files))


def _version_or_none(path: str) -> str:
    try:
        return version_of(path)
    except OSError:  # a dangling link: reading it says why
        return ""


def _remote_files(folder: str) -> Iterator[tuple[str, Located]]:
    fs, root = _file_system(folder)
    found: dict[str, dict[str, Any]] = fs.find(root, detail=True)
    for path in sorted(found):
        relative = path.removeprefix(root).lstrip("/")
        yield relative, Located(fs.unstrip_protocol(path), _version_of_info(found[path]))


def _version_of_info(info: dict[str, Any]) -> str:
    tag = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
    return f"{info.get('size')}-{tag}"
