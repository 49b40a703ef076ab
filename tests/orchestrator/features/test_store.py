"""An entry is whole, verified and mapped, or it is not there."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import IntegrityError
from orchestrator.features.store import (
    _VERIFIED,
    MANIFEST,
    MOST_PARTS,
    ROWS_PER_PART,
    FeatureKey,
    FeatureStore,
    Float32,
    batched,
    part_name,
    part_ranges,
)

KEY = FeatureKey(backbone="resnet18", weights="w", cut="last", transform="t", data="d")
N_ROWS = 2 * ROWS_PER_PART + 3


def values(n_rows: int = N_ROWS, width: int = 4) -> Float32:
    return np.random.default_rng(0).normal(size=(n_rows, width)).astype(np.float32)


def fill(store: FeatureStore, features: Float32, key: FeatureKey = KEY) -> None:
    for rows in part_ranges(len(features)):
        store.put(key, rows, features[rows.start : rows.stop])
    store.seal(key, n_rows=len(features))


def part_file(store: FeatureStore, number: int) -> Path:
    (path,) = store.folder(KEY).glob(f"{part_name(part_ranges(N_ROWS)[number])}-*.arrow")
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "resnet50"},
        {"weights": "x"},
        {"cut": "multi-scale"},
        {"transform": "x"},
        {"data": "x"},
        {"view": 1},
    ],
)
def test_whatever_changes_the_values_changes_the_entrys_name(change: dict[str, object]) -> None:
    assert KEY.model_copy(update=change).digest != KEY.digest
    assert FeatureKey.model_validate(KEY.to_json()).digest == KEY.digest


def test_what_is_put_and_sealed_is_found(tmp_path: Path) -> None:
    store, features = FeatureStore(tmp_path), values()
    assert store.find(KEY) is None
    fill(store, features)
    found = FeatureStore(tmp_path).find(KEY)
    assert found is not None
    assert (len(found), found.width) == features.shape
    assert np.array_equal(np.concatenate(found.blocks), features)


def test_activations_keep_their_shape_and_half_precision(tmp_path: Path) -> None:
    """They come block by block, of any length."""
    store, key = (
        FeatureStore(tmp_path),
        KEY.model_copy(update={"cut": "stage-2", "dtype": "float16"}),
    )
    maps = np.random.default_rng(0).normal(size=(ROWS_PER_PART + 40, 3, 3, 2)).astype(np.float32)
    for rows in part_ranges(len(maps)):
        with store.writing(key, rows) as part:
            for start in range(rows.start, rows.stop, 37):
                part.write(maps[start : min(start + 37, rows.stop)])
    store.seal(key, n_rows=len(maps))
    found = FeatureStore(tmp_path).find(key)
    assert found is not None
    assert (len(found), found.shape) == (len(maps), (3, 3, 2))
    chosen = np.array(
        [ROWS_PER_PART + 39, 0, 36, 37, ROWS_PER_PART - 1, ROWS_PER_PART, ROWS_PER_PART]
    )
    taken = found.take(chosen)
    assert taken.dtype == np.float16
    assert np.array_equal(taken, maps[chosen].astype(np.float16))


def test_what_half_precision_cannot_hold_is_refused_with_what_to_set(tmp_path: Path) -> None:
    store, key = FeatureStore(tmp_path), KEY.model_copy(update={"dtype": "float16"})
    with pytest.raises(IntegrityError, match="stored_precision: fp32"):
        store.put(key, range(2), np.array([[1.0], [7e4]], np.float32))
    assert store.missing(key, n_rows=2) == [range(2)]
    assert not list(store.folder(key).iterdir())


def test_parts_are_mapped_and_not_copied(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    fill(store, values())
    found = store.find(KEY)
    assert found is not None
    for part in found.blocks:
        assert not part.flags.owndata
        assert not part.flags.writeable
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(store.folder(KEY)) in mapped.read_text()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.integers(0, N_ROWS - 1), max_size=50))
def test_rows_are_taken_in_any_order_and_more_than_once(tmp_path: Path, rows: list[int]) -> None:
    store, features = FeatureStore(tmp_path), values()
    found = store.find(KEY)
    if found is None:
        fill(store, features)
        found = store.find(KEY)
    assert found is not None
    chosen = np.array(rows, np.int64)
    assert np.array_equal(found.take(chosen), features[chosen])


@pytest.mark.parametrize("row", [-1, N_ROWS])
def test_a_row_that_is_not_there_is_not_taken(tmp_path: Path, row: int) -> None:
    store = FeatureStore(tmp_path)
    fill(store, values())
    found = store.find(KEY)
    assert found is not None
    with pytest.raises(AssertionError):
        found.take(np.array([0, row]))


def test_an_unfinished_entry_is_not_found_and_its_parts_are_kept(tmp_path: Path) -> None:
    store, features = FeatureStore(tmp_path), values()
    first, second, third = part_ranges(N_ROWS)
    store.put(KEY, second, features[second.start : second.stop])
    assert store.find(KEY) is None
    assert store.missing(KEY, n_rows=N_ROWS) == [first, third]
    with pytest.raises(IntegrityError, match=f"{part_name(first)}.*{part_name(third)}"):
        store.seal(KEY, n_rows=N_ROWS)
    for rows in (first, third):
        store.put(KEY, rows, features[rows.start : rows.stop])
    assert store.missing(KEY, n_rows=N_ROWS) == []
    store.seal(KEY, n_rows=N_ROWS)
    sealed = store.find(KEY)
    assert sealed is not None
    assert np.array_equal(np.concatenate(sealed.blocks), features)


@pytest.mark.parametrize("part", [0, 2, None])
@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_damaged_bytes_are_refused_and_the_message_names_the_folder(
    tmp_path: Path, part: int | None, damage: str
) -> None:
    store = FeatureStore(tmp_path)
    fill(store, values())
    path = store.folder(KEY) / MANIFEST if part is None else part_file(store, part)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"flipped": content, "cut": content[:-3], "emptied": bytearray()}[damage])
    with pytest.raises(IntegrityError, match=str(store.folder(KEY))):
        store.find(KEY)


def test_a_part_that_is_gone_is_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    fill(store, values())
    gone = part_file(store, 1)
    gone.unlink()
    with pytest.raises(IntegrityError, match=gone.name):
        store.find(KEY)


def test_a_part_of_an_unfinished_entry_that_is_damaged_is_computed_again(tmp_path: Path) -> None:
    store, features = FeatureStore(tmp_path), values()
    first, second, third = part_ranges(N_ROWS)
    for rows in (first, second):
        store.put(KEY, rows, features[rows.start : rows.stop])
    damaged = part_file(store, 1)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert store.missing(KEY, n_rows=N_ROWS) == [second, third]
    assert not damaged.exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    store, features = FeatureStore(tmp_path), values(5)
    features[3, 1] = bad
    with pytest.raises(IntegrityError, match="not finite"):
        store.put(KEY, range(5), features)
    assert store.missing(KEY, n_rows=5) == [range(5)]


def test_the_first_writer_of_a_part_wins(tmp_path: Path) -> None:
    """A writer whose values differ in rounding must not change what another has sealed."""
    store, features = FeatureStore(tmp_path), values(5)
    fill(store, features)
    store.put(KEY, range(5), features * np.float32(1.0001))
    found = store.find(KEY)
    assert found is not None
    assert np.array_equal(found.blocks[0], features)
    assert not list(store.folder(KEY).glob(".*"))


def fill_many_times(root: Path, factor: float) -> None:
    store = FeatureStore(root)
    for view in range(10):
        fill(store, values(600) * np.float32(factor), KEY.model_copy(update={"view": view}))


def test_two_writers_at_once_leave_good_entries(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=fill_many_times, args=(tmp_path, factor)) for factor in (1, 2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    store, features = FeatureStore(tmp_path), values(600)
    for view in range(10):
        found = store.find(KEY.model_copy(update={"view": view}))
        assert found is not None
        for part, rows in zip(found.blocks, part_ranges(600), strict=True):
            written = features[rows.start : rows.stop]
            assert any(np.array_equal(part, written * np.float32(f)) for f in (1, 2))
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("n_rows", [1, ROWS_PER_PART, ROWS_PER_PART + 1, 100_000])
def test_parts_are_all_rows_in_order(n_rows: int) -> None:
    ranges = part_ranges(n_rows)
    assert [row for rows in ranges for row in rows] == list(range(n_rows))
    assert all(0 < len(rows) <= max(ROWS_PER_PART, 1 + n_rows // MOST_PARTS) for rows in ranges)
    assert len(ranges) <= MOST_PARTS


def test_batches_are_all_rows_in_order() -> None:
    rows = np.arange(7, dtype=np.int64)
    groups = list(batched(rows, 3))
    assert [len(group) for group in groups] == [3, 3, 1]
    assert np.array_equal(np.concatenate(groups), rows)


@pytest.mark.parametrize("broken", ["flipped", "truncated", "missing"])
def test_of_a_damaged_entry_whole_parts_stay(tmp_path: Path, broken: str) -> None:
    store, features = FeatureStore(tmp_path), values()
    fill(store, features)
    folder = store.folder(KEY)
    part = sorted(folder.glob("part-*.arrow"))[1]
    content = part.read_bytes()
    part.unlink()
    if broken != "missing":
        part.write_bytes(
            content[:-9] + b"!" + content[-8:] if broken == "flipped" else content[:99]
        )
    _VERIFIED.clear()
    with pytest.raises(IntegrityError, match="is damaged"):
        store.find(KEY)
    assert store.remove_damaged(KEY)
    assert store.find(KEY) is None
    assert store.missing(KEY, n_rows=N_ROWS) == [part_ranges(N_ROWS)[1]]
    assert not store.remove_damaged(KEY)


def test_without_a_readable_manifest_parts_are_what_their_names_say(tmp_path: Path) -> None:
    store, features = FeatureStore(tmp_path), values()
    fill(store, features)
    assert not store.remove_damaged(KEY)
    (store.folder(KEY) / MANIFEST).write_text("{")
    part_file(store, 1).write_bytes(b"damaged")
    assert store.remove_damaged(KEY)
    assert store.missing(KEY, n_rows=N_ROWS) == [part_ranges(N_ROWS)[1]]
