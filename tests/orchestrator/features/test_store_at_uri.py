"""Features at a URI: each node fetches what it reads, once; what is damaged is made anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import IntegrityError
from orchestrator.features.store import (
    MANIFEST,
    ROWS_PER_PART,
    FeatureKey,
    FeatureStore,
    part_name,
    part_ranges,
)
from orchestrator.spec import mirror
from orchestrator.spec.object_store import Stored
from tests.object_storage import Node

KEY = FeatureKey(backbone="resnet18", weights="w", cut="last", transform="t", data="d")
N_ROWS = 2 * ROWS_PER_PART + 3
VALUES = np.random.default_rng(0).normal(size=(N_ROWS, 4)).astype(np.float32)
PARTS = part_ranges(N_ROWS)


def store_at(uri: str) -> FeatureStore:
    return FeatureStore(mirror.local_path(uri) / "features")


def put(store: FeatureStore, rows: range, shift: float = 0.0) -> None:
    store.put(KEY, rows, VALUES[rows.start : rows.stop] + np.float32(shift))


def parts_here(store: FeatureStore) -> set[str]:
    return {path.name.rpartition("-")[0] for path in store.folder(KEY).glob("part-*")}


def part_file(store: FeatureStore, rows: range) -> Path:
    (path,) = store.folder(KEY).glob(f"{part_name(rows)}-*.arrow")
    return path


def test_nodes_fill_an_entry_together_and_the_driver_fetches_one_part(
    storage_uri: str, become: Node
) -> None:
    for name, parts in (("a", PARTS[:2]), ("b", PARTS[2:])):
        become(name)
        store = store_at(storage_uri)
        for rows in parts:
            put(store, rows)
    become("driver")
    store = store_at(storage_uri)
    assert store.missing(KEY, n_rows=N_ROWS) == []
    assert not store.has(KEY)
    store.seal(KEY, n_rows=N_ROWS)
    assert store.has(KEY)
    assert parts_here(store) == {part_name(PARTS[0])}, "for the shape of a row"
    become("trial")
    found = store_at(storage_uri).find(KEY)
    assert found is not None
    assert np.array_equal(np.concatenate(found.blocks), VALUES)


def test_an_entry_is_finished_by_another_node(storage_uri: str, become: Node) -> None:
    put(store_at(storage_uri), PARTS[0])
    become("b")
    store = store_at(storage_uri)
    assert store.missing(KEY, n_rows=N_ROWS) == PARTS[1:]
    with pytest.raises(IntegrityError, match=f"{storage_uri}/features/.* lacks"):
        store.seal(KEY, n_rows=N_ROWS)
    for rows in PARTS[1:]:
        put(store, rows)
    store.seal(KEY, n_rows=N_ROWS)
    found = store.find(KEY)
    assert found is not None
    assert np.array_equal(np.concatenate(found.blocks), VALUES)


def test_the_first_node_to_write_a_part_wins_on_both(storage_uri: str, become: Node) -> None:
    first = store_at(storage_uri)
    put(first, PARTS[0])
    become("b")
    second = store_at(storage_uri)
    put(second, PARTS[0], shift=1e-6)
    fill(second)
    found = second.find(KEY)
    assert found is not None
    assert np.array_equal(np.concatenate(found.blocks), VALUES)


def fill(store: FeatureStore, shift: float = 0.0) -> None:
    for rows in store.missing(KEY, n_rows=N_ROWS):
        put(store, rows, shift)
    store.seal(KEY, n_rows=N_ROWS)


def test_a_copy_that_is_damaged_is_fetched_again(
    storage_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.features.store._VERIFIED", set())
    store = store_at(storage_uri)
    fill(store)
    part_file(store, PARTS[1]).write_bytes(b"damaged")
    found = store.find(KEY)
    assert found is not None
    assert np.array_equal(np.concatenate(found.blocks), VALUES)


@pytest.mark.parametrize("of_part", [True, False])
def test_an_object_that_is_damaged_is_refused_and_made_anew(
    storage_uri: str, become: Node, of_part: bool
) -> None:
    store = store_at(storage_uri)
    fill(store)
    damaged = part_file(store, PARTS[1]).name if of_part else MANIFEST
    Stored(f"{mirror.location_of(store.folder(KEY))}/{damaged}").write(b"damaged")
    become("b")
    store = store_at(storage_uri)
    with pytest.raises(IntegrityError, match=f"{storage_uri}/features/.*{damaged} is damaged"):
        store.find(KEY)
    assert store.remove_damaged(KEY)
    assert not store.has(KEY)
    fill(store)
    found = store.find(KEY)
    assert found is not None
    assert np.array_equal(np.concatenate(found.blocks), VALUES)


def test_what_was_deleted_at_the_uri_is_made_anew_whatever_a_node_has(
    storage_uri: str, become: Node
) -> None:
    fill(store_at(storage_uri))
    become("b")
    store = store_at(storage_uri)
    assert store.find(KEY) is not None
    mirror.at_uri(store.folder(KEY)).remove_tree()  # type: ignore[union-attr]
    become("a")
    store = store_at(storage_uri)
    assert not store.has(KEY)
    fill(store, shift=0.5)
    become("b")
    found = store_at(storage_uri).find(KEY)
    assert found is not None
    become("c")
    anew = store_at(storage_uri).find(KEY)
    assert anew is not None
    assert np.array_equal(np.concatenate(anew.blocks), VALUES + np.float32(0.5))
