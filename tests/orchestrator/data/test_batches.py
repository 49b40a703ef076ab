from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.data.batches import epoch_batches, iterate_pixels
from orchestrator.data.examples import Examples
from orchestrator.data.preparing import prepare_data
from orchestrator.data.transforms import decode_side, eval_pixels
from orchestrator.errors import DataError
from orchestrator.spec.data import DataSpec


@pytest.fixture
def examples(make_tree, tmp_path) -> Examples:
    root = make_tree({"a": range(15), "b": range(15, 30)})
    spec = DataSpec(train=str(root))
    cache = tmp_path / "cache"
    return prepare_data(spec, task="image-classification", seed=0, cache=cache).examples


def pixels_of(examples, batches, contract, **options):
    usual = {"augment": "none", "seed": 0, "epoch": 0, "threads": 2}
    return iterate_pixels(examples, batches, contract=contract, **{**usual, **options})


def decode_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_an_epoch_visits_every_index_once_in_an_order_of_its_own():
    indices = np.arange(100, 123)
    batches = epoch_batches(indices, batch_size=5, seed=0, epoch=0)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert sorted(np.concatenate(batches)) == indices.tolist()
    orders = {
        tuple(np.concatenate(epoch_batches(indices, batch_size=5, seed=s, epoch=e)))
        for s in (0, 1, 0)
        for e in (0, 1, 0)
    }
    assert len(orders) == 4


def test_no_indices_make_no_batches():
    assert epoch_batches(np.arange(0), batch_size=5, seed=0, epoch=0) == []


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_batches_come_in_order_with_the_pixels_of_their_rows(examples, contract, prefetch):
    batches = epoch_batches(np.arange(30), batch_size=7, seed=0, epoch=0)
    found = list(pixels_of(examples, batches, contract, prefetch=prefetch))
    assert [rows.tolist() for rows, _ in found] == [batch.tolist() for batch in batches]
    for rows, pixels in found:
        assert pixels.shape == (len(rows), 3, 16, 16)
        for i, one in zip(rows, pixels, strict=True):
            image = examples.image(i, least_side=decode_side(contract))
            assert (one == eval_pixels(image, contract)).all()


@pytest.mark.parametrize("augment", ["light", "standard", "trivial"])
def test_views_do_not_depend_on_threads_or_batches(examples, contract, augment):
    def views(batch_size: int, threads: int, epoch: int = 3) -> np.ndarray:
        batches = epoch_batches(np.arange(30), batch_size=batch_size, seed=threads, epoch=0)
        out = np.empty((30, 3, 16, 16), np.uint8)
        for rows, pixels in pixels_of(
            examples, batches, contract, augment=augment, epoch=epoch, threads=threads
        ):
            out[rows] = pixels
        return out

    assert (views(4, 1) == views(30, 4)).all()
    assert (views(4, 1) != views(4, 1, epoch=4)).any()


def test_at_most_prefetch_batches_are_started_ahead(examples, contract):
    taken: list[int] = []

    def batches() -> Iterator[np.ndarray]:
        for k in range(20):
            taken.append(k)
            yield np.array([k])

    stream = pixels_of(examples, batches(), contract, prefetch=3)
    for k in range(10):
        next(stream)
        assert len(taken) == k + 1 + 3
    stream.close()


def test_an_error_in_a_thread_is_raised_where_the_batch_is_taken(examples, contract):
    Path(examples.uri(20)).unlink()
    batches = [np.arange(0, 10), np.arange(10, 25)]
    stream = pixels_of(examples, batches, contract)
    next(stream)
    with pytest.raises(DataError, match="cannot be read now"):
        next(stream)
    assert decode_threads() == []


def test_closing_early_ends_the_threads(examples, contract):
    stream = pixels_of(examples, [np.arange(30)] * 50, contract)
    next(stream)
    assert decode_threads()
    stream.close()
    assert decode_threads() == []
