"""The solar cells as an ordinary tree: the literature's split, the same on every machine."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from jobs.elpv import TEST_FRACTION, _split, main, write_elpv
from orchestrator.errors import DataError

Strata = dict[tuple[str, str], list[tuple[str, str]]]


@pytest.fixture(scope="module")
def strata() -> Strata:
    """(probability, module type) → (path, label) of every cell."""
    elpv_dataset = pytest.importorskip("elpv_dataset")
    cells = defaultdict(list)
    source = Path(elpv_dataset.__file__).parent / "data" / "labels.csv"
    for line in source.read_text().splitlines():
        path, prob, module = line.split()
        cells[prob, module].append((path, "defective" if float(prob) >= 0.5 else "functional"))
    return dict(cells)


def test_a_quarter_of_all_cells_is_test(strata: Strata) -> None:
    rows = _split(strata, seed=0)

    assert Counter(split for _, _, split in rows) == {"train": 1968, "test": 656}
    assert len({path for path, _, _ in rows}) == 2624
    assert Counter(label for _, label, _ in rows) == {"functional": 1803, "defective": 821}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_stratum_is_split_alike(strata: Strata, seed: int) -> None:
    test = {path for path, _, split in _split(strata, seed) if split == "test"}

    assert len(test) == 656
    assert len(strata) == 8
    for cells in strata.values():
        chosen = sum(path in test for path, _ in cells)
        assert abs(chosen - TEST_FRACTION * len(cells)) < 1


def test_the_split_is_a_function_of_the_seed_alone(strata: Strata) -> None:
    turned = {key: cells[::-1] for key, cells in reversed(strata.items())}

    assert sorted(_split(turned, 0)) == sorted(_split(strata, 0))
    assert sorted(_split(strata, 1)) != sorted(_split(strata, 0))


def test_the_tree_is_written_once_and_never_mixed(strata: Strata, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    counts = write_elpv(folder, seed=0)
    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}

    assert sum(counts.values()) == len(files) == 2624
    assert {name: len(list((folder / name).iterdir())) for name in counts} == counts
    assert {name.split("/")[0] for name in counts} == {"train", "test"}

    gone = folder / "train" / "functional" / min((folder / "train" / "functional").iterdir()).name
    gone.unlink()
    assert main([str(folder)]) == 0
    assert {file.stem for file in folder.glob("*.pth")} == {
        "efficientnet_lite0",
        "efficientnet_lite2",
    }
    assert gone.stat().st_size > 0
    assert all(file.stat().st_mtime_ns == old for file, old in files.items() if file != gone)

    with pytest.raises(DataError, match="not of this split"):
        write_elpv(folder, seed=1)
    assert main([str(folder), "--seed", "1"]) == 3
    assert len(list(folder.rglob("*.png"))) == 2624
