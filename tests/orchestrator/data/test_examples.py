from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.data.blobs import Blobs, BlobWriter
from orchestrator.data.examples import Example, Examples
from orchestrator.errors import DataError, IntegrityError, UnreadableExample


def example(k: int, **changes: object) -> Example:
    split = ("train", "train", "validation", "test")[k % 4]
    base = Example(f"/data/{k}.png", f"{k * 7919 % 1000:032x}", split, ("ab"[k % 2],))
    return replace(base, **changes)


def write(folder: Path, rows: list[Example], **options: object) -> Examples:
    return Examples.write(folder, rows, labels=["b", "a"], **{"multilabel": False, **options})


def test_rows_are_in_one_order_whatever_order_they_came_in(tmp_path):
    rows = [example(k) for k in range(40)]
    one = write(tmp_path / "one", rows)
    random.Random(0).shuffle(rows)
    two = write(tmp_path / "two", rows)
    assert one.digest == two.digest
    assert [one.uri(i) for i in range(40)] == [two.uri(i) for i in range(40)]


@pytest.mark.parametrize("change", [{"content": "0" * 32}, {"split": "test"}, {"labels": ("b",)}])
def test_the_digest_covers_content_split_and_target(change, tmp_path):
    rows = [example(k) for k in range(1, 9)]
    changed = [*rows[:3], replace(rows[3], **change), *rows[4:]]
    assert rows[3] != changed[3]
    assert write(tmp_path / "a", rows).digest != write(tmp_path / "b", changed).digest


def test_indices_are_the_rows_of_a_split(tmp_path):
    examples = write(tmp_path / "a", [example(k) for k in range(40)])
    sizes = [len(examples.indices(split)) for split in ("train", "validation", "test")]
    assert sizes == [20, 10, 10]
    assert examples.indices("test").dtype == np.int64
    for i in examples.indices("validation"):
        assert int(Path(examples.uri(i)).stem) % 4 == 2


def test_targets_cannot_be_changed(tmp_path):
    examples = write(tmp_path / "a", [example(k) for k in range(4)])
    with pytest.raises(ValueError, match="read-only"):
        examples.targets()[0] = 1


def test_an_empty_set_can_be_written_and_read(tmp_path):
    for multilabel in (False, True):
        examples = write(tmp_path / str(multilabel), [], multilabel=multilabel)
        assert len(examples) == len(examples.targets()) == len(examples.indices("train")) == 0


def test_a_pickled_set_reopens_its_folder(tmp_path):
    examples = write(tmp_path / "a", [example(k) for k in range(400)])
    data = pickle.dumps(examples)
    assert len(data) < 500
    assert pickle.loads(data).digest == examples.digest


def test_saving_takes_the_blobs_along(tmp_path):
    with BlobWriter(tmp_path) as writer:
        rows = [example(k, blob_file=0, blob=writer.add(bytes([k]) * k)) for k in range(9)]
        path = writer.close()
    write(tmp_path / "a", rows, blobs=[path]).save(tmp_path / "b")
    (tmp_path / "a/blobs.arrow").unlink()
    moved = Examples.open(tmp_path / "b")
    for i in range(9):
        k = int(Path(moved.uri(i)).stem)
        assert moved.read_bytes(i) == bytes([k]) * k


def test_blobs_over_many_batches_are_found_by_row_from_any_thread(tmp_path):
    values = [bytes([k % 251]) * (k % 50) for k in range(1000)]
    with BlobWriter(tmp_path, batch_bytes=200) as writer:
        assert [writer.add(value) for value in values] == list(range(1000))
        path = writer.close()
    blobs = Blobs(path)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(blobs.__getitem__, range(1000))) == values


def test_an_abandoned_blob_file_leaves_nothing(tmp_path):
    with BlobWriter(tmp_path) as writer:
        writer.add(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_since_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    rows = [example(k, uri=str(tmp_path / name)) for k, name in enumerate(("gone.png", "text.png"))]
    examples = write(tmp_path / "a", rows)
    with pytest.raises(DataError, match=r"gone\.png: was there when the data was prepared"):
        examples.image(0)
    with pytest.raises(UnreadableExample, match=r"text\.png: not an image"):
        examples.image(1)


def test_an_index_of_another_version_is_refused(tmp_path):
    write(tmp_path / "a", [example(0)])
    index = tmp_path / "a/index.arrow"
    index.write_bytes(index.read_bytes().replace(b"examples-1", b"examples-0"))
    with pytest.raises(IntegrityError, match="Prepare the data again"):
        Examples.open(tmp_path / "a")


def test_writing_a_set_that_another_process_has_written_keeps_it(tmp_path):
    first = write(tmp_path / "a", [example(k) for k in range(4)])
    assert write(tmp_path / "a", [example(k) for k in range(4)]).digest == first.digest
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
