"""Room in the FeatureStore: entries in use are leased, the others are evicted, oldest use first.

A lease is a file that names entries and that its process keeps locked; the lock ends with the
process, however it ends. Looking an entry up is using it. What an evicted entry's readers have
mapped stays theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.features.store import MANIFEST, FeatureKey, FeatureStore

LEASES = "leases"
ABANDONED_S = 24 * 3600.0


@dataclass(frozen=True)
class Entry:
    """A folder of the store: its bytes, and when it was last used (seconds since the epoch)."""

    folder: Path
    bytes: int
    used_at: float


def entries(store: FeatureStore) -> list[Entry]:
    """What the store holds, finished or not, longest unused first."""
    found = []
    for folder in store.root.glob("*/"):
        if folder.name == LEASES:
            continue
        with contextlib.suppress(FileNotFoundError):  # evicted by another process meanwhile
            manifest = folder / MANIFEST
            used_at = (manifest if manifest.exists() else folder).stat().st_mtime
            size = sum(path.stat().st_size for path in folder.iterdir())
            found.append(Entry(folder, size, used_at))
    return sorted(found, key=lambda entry: (entry.used_at, entry.folder.name))


@contextlib.contextmanager
def leased(store: FeatureStore, keys: Collection[FeatureKey]) -> Iterator[None]:
    """Keep other processes from evicting some entries until the block ends."""
    folder = store.root / LEASES
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid.uuid4().hex}.json"
    hidden = path.with_suffix(".tmp")  # locked before anybody can see it
    with hidden.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump([store.folder(key).name for key in keys], file)
        file.flush()
        hidden.rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def make_room(
    store: FeatureStore, *, needed_bytes: float, budget_bytes: float, keep: Collection[FeatureKey]
) -> list[Entry]:
    """Evict until what the store holds and what is needed fit the budget, or nothing may go.

    Args:
        store: The store.
        needed_bytes: About to be written.
        budget_bytes: For all that the store holds.
        keep: Entries that stay, leased or not.

    Returns:
        What was evicted.
    """
    protected = {store.folder(key).name for key in keep} | _leased_names(store)
    held = entries(store)
    excess = sum(entry.bytes for entry in held) + needed_bytes - budget_bytes
    evicted = []
    for entry in held:
        _remove_abandoned(entry.folder)
        if excess > 0 and entry.folder.name not in protected:
            # Without its manifest the entry is unfinished, however far the removal gets.
            (entry.folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(entry.folder, ignore_errors=True)
            excess -= entry.bytes
            evicted.append(entry)
    return evicted


def leased_bytes(store: FeatureStore, *, besides: Collection[FeatureKey]) -> int:
    """Of the entries that living processes have leased, but for some."""
    mine = {store.folder(key).name for key in besides}
    names = _leased_names(store) - mine
    return sum(entry.bytes for entry in entries(store) if entry.folder.name in names)


def _leased_names(store: FeatureStore) -> set[str]:
    """Entries that a living process has leased; leases of dead ones are removed."""
    names: set[str] = set()
    for path in (store.root / LEASES).glob("*.json"):
        with contextlib.suppress(FileNotFoundError), path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                names.update(json.load(file))
            else:
                path.unlink(missing_ok=True)
    return names


def _remove_abandoned(folder: Path) -> None:
    """Remove half-written parts that a killed process left a day ago or earlier."""
    for path in folder.glob(".part-*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()
