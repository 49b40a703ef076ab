"""Eviction takes what is longest unused, and never what is in use."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from orchestrator.features.room import ABANDONED_S, Entry, entries, leased, make_room
from orchestrator.features.store import MANIFEST, FeatureKey, FeatureStore

KEYS = [
    FeatureKey(backbone=name, weights="w", cut="last", transform="t", data="d") for name in "abc"
]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Three entries of equal size; `a` was used longest ago, `c` last."""
    store = FeatureStore(tmp_path)
    for number, key in enumerate(KEYS):
        store.put(key, range(4), np.zeros((4, 1000), np.float32))
        store.seal(key, n_rows=4)
        os.utime(store.folder(key) / MANIFEST, (number, number))
    return store


def names(store: FeatureStore, evicted: list[Entry]) -> str:
    return "".join(
        key.backbone for key in KEYS if store.folder(key) in {entry.folder for entry in evicted}
    )


def total(store: FeatureStore) -> int:
    return sum(entry.bytes for entry in entries(store))


@pytest.mark.parametrize(
    ("needed", "expected"), [(0, ""), (1, "a"), (16_000, "a"), (18_000, "ab"), (10**6, "abc")]
)
def test_as_many_as_must_go_go_longest_unused_first(
    store: FeatureStore, needed: int, expected: str
) -> None:
    evicted = make_room(store, needed_bytes=needed, budget_bytes=total(store), keep=())
    assert names(store, evicted) == expected
    assert [store.find(key) is None for key in KEYS] == [k.backbone in expected for k in KEYS]


def test_looking_an_entry_up_is_using_it(store: FeatureStore) -> None:
    assert store.find(KEYS[0]) is not None
    evicted = make_room(store, needed_bytes=1, budget_bytes=total(store), keep=())
    assert names(store, evicted) == "b"


def test_what_this_sweep_reads_and_what_others_lease_stays(store: FeatureStore) -> None:
    with leased(store, [KEYS[1]]):
        evicted = make_room(store, needed_bytes=10**6, budget_bytes=0, keep=[KEYS[0]])
        assert names(store, evicted) == "c"
    evicted = make_room(store, needed_bytes=10**6, budget_bytes=0, keep=())
    assert names(store, evicted) == "ab"


def hold(root: Path, ready: Connection) -> None:
    with leased(FeatureStore(root), KEYS):
        ready.send(True)
        time.sleep(60)


def test_a_lease_ends_with_its_process_however_it_ends(store: FeatureStore) -> None:
    ready, told = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(store.root, told))
    process.start()
    assert ready.poll(60)
    assert make_room(store, needed_bytes=10**6, budget_bytes=0, keep=()) == []
    process.kill()
    process.join()
    assert len(make_room(store, needed_bytes=10**6, budget_bytes=0, keep=())) == 3
    assert list((store.root / "leases").iterdir()) == []


def test_what_is_mapped_can_be_read_after_its_eviction(store: FeatureStore) -> None:
    found = store.find(KEYS[0])
    assert found is not None
    make_room(store, needed_bytes=10**6, budget_bytes=0, keep=())
    assert not store.folder(KEYS[0]).exists()
    assert found.take(np.arange(4)).shape == (4, 1000)


def test_half_written_parts_are_removed_a_day_later(store: FeatureStore) -> None:
    folder = store.folder(KEYS[0])
    old, young = folder / ".part-00001.arrow.x.tmp", folder / ".part-00001.arrow.y.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    then = time.time() - ABANDONED_S - 1
    os.utime(old, (then, then))
    make_room(store, needed_bytes=0, budget_bytes=10**9, keep=())
    assert not old.exists()
    assert young.exists()
