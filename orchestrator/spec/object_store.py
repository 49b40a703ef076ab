"""Objects at URIs, through whatever driver of fsspec reaches them.

What a store does not answer is asked again with growing pauses; then the error names the URI, what
the driver said, and what to do. Nothing here holds or shows credentials: drivers find their own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import SpecError, StorageError, listing, nearest

TRIES = 3  # drivers ask again themselves, several times each
FIRST_PAUSE_S = 1.0
COMMON = ("s3://", "gs://", "abfs://")
NODES_OWN = re.compile(r".*\.(tmp|partial)|\.lock")  # names that no object has

_URI = re.compile(r"([a-z][a-z0-9+.-]*)://([^?#\s]+)")
_NOT_SHARED = ("data", "file", "http", "https", "local", "memory")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "az": "azure"}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FIRST_WINS = {"mode": "create"}

T = TypeVar("T")


def is_uri(location: str) -> bool:
    """Whether a storage is reached by a driver, rather than mounted."""
    return "://" in location


def checked_uri(uri: str) -> str:
    """`uri` as storages are named: without a slash at its end.

    Raises:
        SpecError: No cluster can share it, or it holds a password.
    """
    from fsspec.registry import known_implementations

    found = _URI.fullmatch(uri.rstrip("/"))
    if found is None:
        raise SpecError(f"{_without_password(uri)!r} is no URI. Use e.g. s3://bucket/runs")
    scheme, rest = found.groups()
    if uri != _without_password(uri):
        told = "holds a password. Leave it out: the driver finds credentials in its environment"
        raise SpecError(f"{_without_password(uri)!r} {told}, its files, or the machine's role")
    if scheme in _NOT_SHARED:
        told = "is not shared by the nodes of a cluster. Use a folder that all mount, or a bucket"
        raise SpecError(f"{uri!r} {told}")
    if scheme not in known_implementations:
        told = f"no driver knows {scheme}://. Use {listing(COMMON)} or a folder."
        raise SpecError(f"{told}{nearest(f'{scheme}://', COMMON)}")
    if any(part in ("", ".", "..") or NODES_OWN.fullmatch(part) for part in rest.split("/")):
        raise SpecError(
            f"{uri!r} has a part that no folder can be named. Use e.g. s3://bucket/runs"
        )
    return f"{scheme}://{rest}"


@dataclass(frozen=True)
class Stored:
    """What lies at a URI: an object, or all objects below a prefix."""

    uri: str

    @property
    def driver(self) -> Any:
        """The fsspec file system that reaches it."""
        scheme, _, rest = self.uri.partition("://")
        return _driver(f"{scheme}://{rest.partition('/')[0]}", os.getpid())

    @property
    def path(self) -> str:
        """What its driver calls it."""
        found: str = self.driver._strip_protocol(self.uri)
        return found

    def below(self, name: str) -> Stored:
        """What lies at a name below it."""
        return Stored(f"{self.uri}/{name}")

    def check(self, name: str) -> None:
        """Write an object of this name, read it, remove it: once, so that it does not take long.

        Raises:
            SpecError: The driver is not installed.
            StorageError: One of the three cannot be done.
        """
        path, content = f"{self.path}/{name}", name.encode()
        self._writing(lambda: self.driver.pipe_file(path, content), tries=1)
        there = self._persistently(lambda: self.driver.cat_file(path), tries=1)
        self._persistently(lambda: self.driver.rm_file(path), tries=1)
        if there != content:
            raise StorageError(f"{self.uri}: does not give back what is written to it")

    def read(self) -> bytes | None:
        """Its bytes; None where there is nothing."""
        try:
            content: bytes = self._persistently(lambda: self.driver.cat_file(self.path))
        except FileNotFoundError:
            return None
        return content

    def write(self, content: bytes, *, first_wins: bool = False) -> bool:
        """Write it in one PUT; with `first_wins`, whether it was not there before."""
        mode = _FIRST_WINS if first_wins else {}
        try:
            self._writing(lambda: self.driver.pipe_file(self.path, content, **mode))
        except FileExistsError:
            return False
        return True

    def send(self, source: Path, *, first_wins: bool = False) -> bool:
        """Write it from a file, so that nobody sees a part of it; else as `write`."""
        mode = _FIRST_WINS if first_wins else {}
        try:
            self._writing(lambda: self.driver.put_file(str(source), self.path, **mode))
        except FileExistsError:
            return False
        return True

    def bring(self, files: Mapping[str, Path]) -> None:
        """Write what lies at names below it to files, side by side.

        Raises:
            FileNotFoundError: One of them is not there.
        """
        if files:
            sources = [f"{self.path}/{name}" for name in files]
            targets = [str(path) for path in files.values()]
            self._persistently(lambda: self.driver.get(sources, targets))

    def names(self) -> set[str]:
        """Of the objects and prefixes directly below it."""
        try:
            found = self._persistently(lambda: self.driver.ls(self.path, detail=False))
        except FileNotFoundError:
            return set()
        own = self.uri.rpartition("/")[2]
        return {str(path).rstrip("/").rpartition("/")[2] for path in found} - {"", own}

    def tree(self) -> dict[str, int]:
        """Bytes of all objects below it, by their names relative to it, with `/`."""
        try:
            found = self._persistently(lambda: self.driver.find(self.path, detail=True))
        except FileNotFoundError:
            return {}
        sizes = {path.removeprefix(self.path).lstrip("/"): info for path, info in found.items()}
        return {name: int(info["size"]) for name, info in sizes.items() if name}

    def written_at(self) -> datetime | None:
        """When it was written, by the clock of its store; None where there is nothing."""
        try:
            found: datetime = self._persistently(lambda: self.driver.modified(self.path))
        except FileNotFoundError:
            return None
        return found

    def remove(self) -> None:
        """Remove the object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._persistently(lambda: self.driver.rm_file(self.path))

    def remove_tree(self) -> None:
        """Remove all objects below it."""
        with contextlib.suppress(FileNotFoundError):
            self._persistently(lambda: self.driver.rm(self.path, recursive=True))

    def _persistently(self, work: Callable[[], T], *, tries: int = TRIES) -> T:
        """What `work` returns, asked again while the store does not answer.

        Raises:
            FileNotFoundError: As `work` does.
            FileExistsError: As `work` does.
            OSError: This node's disk is full.
            StorageError: Whatever else it raises.
        """
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(tries)):
            try:
                return work()
            except (FileNotFoundError, FileExistsError, SpecError):
                raise
            except Exception as err:  # drivers raise what their libraries do
                if isinstance(err, OSError) and err.errno in _FULL:
                    raise
                if not left or _is_refused(err):
                    raise StorageError(f"{self.uri}: {_reason(err)}") from err
                time.sleep(pause_s)
                pause_s *= 2
        raise AssertionError("tried at least once")

    def _writing(self, work: Callable[[], Any], *, tries: int = TRIES) -> None:
        try:
            self._persistently(work, tries=tries)
        except FileNotFoundError as err:
            raise StorageError(f"{self.uri}: there is no such bucket. Create it") from err


@lru_cache(maxsize=16)
def _driver(bucket: str, _process: int) -> Any:
    """The driver of a bucket; it remembers no listings, since other nodes write too."""
    import fsspec

    scheme = bucket.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(bucket, use_listings_cache=False)[0]
    except ImportError as err:
        extra = _EXTRAS.get(scheme)
        package = f"pip install 'transfer-orchestrator[{extra}]'" if extra else "Install it"
        raise SpecError(
            f"storage: {scheme}:// needs a driver that this node does not have ({err}). {package}"
        ) from err
    except Exception as err:
        raise StorageError(f"{bucket}: {_reason(err)}") from err


def _is_refused(err: Exception) -> bool:
    said = f"{type(err).__name__} {err}".lower()
    return isinstance(err, PermissionError) or "credential" in said


def _reason(err: Exception) -> str:
    """What a driver says in one line, and what can be done about it."""
    said = " ".join(str(err).split())[:300] or type(err).__name__
    if _is_refused(err):
        return f"access is refused ({said}). Give the driver credentials that may read and write"
    return f"cannot be reached ({said}). Check the address, the bucket and the network"


def _without_password(uri: str) -> str:
    """A URI for messages; `container@account`, of Azure, is none with a password."""
    scheme, _, rest = uri.partition("://")
    account, at, place = rest.rpartition("@")
    return f"{scheme}://…@{place}" if at and ":" in account else uri
