"""A storage at a URI, and the folder of each node that mirrors it.

    s3://bucket/runs/solar-1f2e/sweep.json
    <cache>/mirrors/s3/bucket/runs/solar-1f2e/sweep.json

Everything works on paths. A path below `<cache>/mirrors` stands for an object; for any other path,
that of a folder which every node mounts, the functions here do nothing. A file is sent before it
gets its name in the mirror, so a mirror holds nothing that its URI lacks and may be deleted
whenever nothing runs. Files and folders named `….tmp`, `….partial` and `.lock` are the node's own.

What is written once is fetched once a node (`fetch`, `fetch_folder`); what changes is fetched when
it has to be as it is now (`refresh`, `refresh_folder`). In a folder that is sent, one file comes
last: where it is, the others are.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.errors import IntegrityError
from orchestrator.spec.object_store import NODES_OWN, Stored, is_uri

_LOCKS = 256

Digests = Callable[[Any], Mapping[str, str]]


def cache_root() -> Path:
    """`$ORCHESTRATOR_CACHE`; when that is not set, `transfer-orchestrator` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _resolved(os.environ.get("ORCHESTRATOR_CACHE") or f"{home}/transfer-orchestrator")


def local_path(location: str) -> Path:
    """Where this node has what lies at a location: in its mirror, or there itself."""
    if not is_uri(location):
        return Path(location)
    scheme, _, rest = location.partition("://")
    return _mirrors() / scheme / rest


def location_of(path: Path) -> str:
    """How every node names what this one has at `path`: its URI, or its absolute path."""
    stored = at_uri(path)
    return str(path.resolve()) if stored is None else stored.uri


def at_uri(path: Path) -> Stored | None:
    """What a path stands for; None for a folder that nodes mount, and for what is a node's own."""
    try:
        parts = path.relative_to(_mirrors()).parts
    except ValueError:
        return None
    if len(parts) < 2 or any(NODES_OWN.fullmatch(part) for part in parts):
        return None
    return Stored(f"{parts[0]}://{'/'.join(parts[1:])}")


def open_storage(location: str) -> Path:
    """Where this node has a storage, once it is known that it can be written.

    Raises:
        SpecError: The driver of its URI is not installed.
        StorageError: It cannot be reached, or not written to.
    """
    folder = local_path(location)
    stored = at_uri(folder)
    if stored is not None:
        stored.check(f".probe-{uuid.uuid4().hex[:12]}")
    return folder


def put(source: Path, path: Path, *, first_wins: bool = False) -> bool:
    """Send `source` as what lies at `path`, before the caller gives it that name in the mirror.

    Args:
        source: A whole file.
        path: Where it belongs.
        first_wins: Leave what is there already.

    Returns:
        Whether it is there now, rather than what was there before.

    Raises:
        StorageError: It could not be sent, tried again and again.
    """
    stored = at_uri(path)
    return stored is None or stored.send(source, first_wins=first_wins)


def put_folder(source: Path, folder: Path, *, last: str) -> None:
    """Send the files of `source` as the folder `folder`, the one named `last` behind the others."""
    stored = at_uri(folder)
    if stored is not None:
        stored.below(last).remove()
        for path in _last_one(source.iterdir(), last):
            stored.below(path.name).send(path)


def publish_folder(folder: Path, *, last: str) -> None:
    """Send what the URI lacks of a folder whose files are written once, `last` last."""
    stored = at_uri(folder)
    if stored is not None:
        there = stored.names()
        for path in _last_one(folder.iterdir(), last):
            if path.name not in there and path.is_file() and at_uri(path) is not None:
                stored.below(path.name).send(path)


def names(folder: Path) -> set[str]:
    """Of the files and folders in a folder; where it has a URI, of those there."""
    stored = at_uri(folder)
    if stored is not None:
        return stored.names()
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder by its relative path; at a URI, of what lies there."""
    stored = at_uri(folder)
    if stored is not None:
        return stored.tree()
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def fetch(path: Path, *, sha256: str | None = None) -> Path:
    """`path`, its file fetched if it is not here; where the URI has none, there is none.

    Args:
        path: Of a file that is written once.
        sha256: What is here must have; other bytes are fetched again.

    Raises:
        IntegrityError: The URI has other bytes.
    """
    stored = at_uri(path.parent)
    if stored is not None and not _is(path, sha256):
        with _locked(path):
            if not _is(path, sha256):
                _bring(stored, path.parent, path.name, sha256)
    return path


def fetch_files(folder: Path, digests: Mapping[str, str]) -> bool:
    """Fetch those files of a folder that are not here as they should be.

    Args:
        folder: Of files that are written once.
        digests: SHA-256 of each file by its name.

    Returns:
        Whether all are here now; never where there is nothing to fetch from.
    """
    stored = at_uri(folder)
    if stored is None:
        return False
    with _locked(folder):
        wrong = [name for name, digest in digests.items() if not _is(folder / name, digest)]
        try:
            _download(stored, folder, wrong, digests)
        except (FileNotFoundError, IntegrityError):
            return False
    return True


def fetch_folder(folder: Path, *, last: str, digests: Digests | None = None) -> Path:
    """`folder`, with the files that the URI has and that are not here, if its last one is there.

    Args:
        folder: Of files that are written once.
        last: The file that was sent last; it gets its name last.
        digests: From the content of `last`, a JSON document, the SHA-256 of the others.

    Raises:
        IntegrityError: The URI has other bytes than `last` says.
    """
    stored = at_uri(folder)
    if stored is None or (digests is not None and (folder / last).exists()):
        return folder
    with _locked(folder):
        there = stored.names()
        if last in there:
            said: Mapping[str, str] = {}
            if digests is not None:
                said = digests(json.loads(stored.below(last).read() or b"{}"))
            others = sorted(there - {last})
            absent = [name for name in others if not _is(folder / name, said.get(name))]
            _download(stored, folder, absent, said)
            if not (folder / last).exists():
                _bring(stored, folder, last, None)
    return folder


def refresh(path: Path) -> None:
    """Make a file what the URI has now; what it has not, is not here either."""
    stored = at_uri(path.parent)
    if stored is not None:
        with _locked(path):
            if not _bring(stored, path.parent, path.name, None):
                path.unlink(missing_ok=True)


def refresh_folder(folder: Path, *, last: str, digests: Digests) -> Path:
    """`folder`, its files those that the URI's `last` names now; see `fetch_folder`."""
    stored = at_uri(folder)
    if stored is None:
        return folder
    with _locked(folder):
        content = stored.below(last).read()
        here = folder / last
        if content is None:
            shutil.rmtree(folder, ignore_errors=True)
        elif not here.exists() or here.read_bytes() != content:
            partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.partial")
            try:
                said = digests(json.loads(content))
                _download(stored, partial, [*said, last], said)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def refresh_tree(folder: Path, *, wanted: Callable[[str], bool]) -> None:
    """Make the wanted files below a folder what the URI has now, with few requests.

    Args:
        folder: Of a storage.
        wanted: By the path relative to `folder`, with `/`. Nobody else writes them meanwhile.
    """
    stored = at_uri(folder)
    if stored is None:
        return
    there = stored.tree()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if wanted(name) and name not in there and path.is_file() and at_uri(path):
            path.unlink(missing_ok=True)
    _download(stored, folder, sorted(filter(wanted, there)), {})


def remove(path: Path) -> None:
    """Remove a file, from the URI first."""
    stored = at_uri(path)
    if stored is not None:
        stored.remove()
    path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, from the URI first."""
    stored = at_uri(folder)
    if stored is not None:
        stored.remove_tree()
    shutil.rmtree(folder, ignore_errors=True)


def node_id() -> str:
    """A word that this node's mirrors share with no other's."""
    path = _mirrors() / "node-id"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if not path.exists():
            temporary = _hidden(path)
            temporary.write_text(uuid.uuid4().hex)
            temporary.replace(path)
    return path.read_text()


def _mirrors() -> Path:
    return cache_root() / "mirrors"


@lru_cache(maxsize=16)
def _resolved(folder: str) -> Path:
    return Path(folder).expanduser().resolve()


def _is(path: Path, sha256: str | None) -> bool:
    """Whether a file is here, with the bytes that it should have."""
    if sha256 is None or not path.is_file():
        return path.is_file()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _last_one(paths: Iterable[Path], last: str) -> list[Path]:
    return sorted(paths, key=lambda path: (path.name == last, path.name))


def _download(stored: Stored, into: Path, files: Sequence[str], digests: Mapping[str, str]) -> None:
    """Bring files to a folder side by side, each to its name when all are here.

    Raises:
        FileNotFoundError: The URI lacks one.
        IntegrityError: One has other bytes than its digest says, twice.
    """
    hidden = {name: _hidden(into / name) for name in files}
    try:
        for path in hidden.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        stored.bring(hidden)
        for name, path in hidden.items():
            digest = digests.get(name)
            if _is(path, digest):
                path.replace(into / name)
            else:
                _bring(stored, into, name, digest)
    finally:
        for path in hidden.values():
            path.unlink(missing_ok=True)


def _bring(stored: Stored, into: Path, name: str, digest: str | None) -> bool:
    """Bring one file, once more if it arrives damaged; whether the URI has it."""
    hidden = _hidden(into / name)
    hidden.parent.mkdir(parents=True, exist_ok=True)
    try:
        for _ in range(2):
            try:
                stored.bring({name: hidden})
            except FileNotFoundError:
                return False
            if _is(hidden, digest):
                hidden.replace(into / name)
                return True
    finally:
        hidden.unlink(missing_ok=True)
    raise IntegrityError(
        f"{stored.uri}/{name} is not what was written: its SHA-256 is not {digest}. Delete it and "
        "run the same command again"
    )


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a path against the other processes and threads of this node; not to be nested."""
    number = int(hashlib.sha256(str(path).encode()).hexdigest(), 16) % _LOCKS
    locks = _mirrors() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / str(number)).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
