"""A trial on two Ray Train workers against the same trial in the Tune actor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ray.util.placement_group import placement_group_table

from orchestrator.runtime.cluster import Cluster
from orchestrator.runtime.folders import SweepFolder
from orchestrator.spec.parsing import parse_sweep
from orchestrator.spec.record import Record
from orchestrator.tuning.sweep import run_sweep

pytestmark = pytest.mark.ray

RawSpec = Callable[..., dict[str, object]]


def run(raw: dict[str, object]) -> tuple[SweepFolder, Record]:
    outcome = run_sweep(parse_sweep(raw, base=Path.cwd()))
    assert outcome.status == "finished"
    folder = SweepFolder(outcome.folder)
    (record,) = folder.records().values()
    assert record.status == "finished", record.reason
    return folder, record


def probs(folder: SweepFolder, record: Record) -> Any:
    path = folder.trial(record.trial).root / "validation.arrow"
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return np.array(table.column("prob").to_pylist())


@pytest.mark.timeout(600)
def test_two_workers_give_the_result_of_one(
    cluster: Cluster, make_spec: RawSpec, tmp_path: Path
) -> None:
    search: list[Any] = make_spec(tmp_path)["search"]  # type: ignore[assignment]
    # 61 or so training images: the last batch of 16 is uneven, and odd for two workers.
    block = {**search[1], "unfreeze": 2, "dropout": 0.0, "batch_norm": "frozen", "augment": "light"}
    common = {"search": [block], "budget": {"trials": 1}, "tuner": {"scheduler": "none"}}
    folder1, one = run(make_spec(tmp_path / "one", **common))
    folder2, two = run(make_spec(tmp_path / "two", **common, workers={"per_trial": 2, "cpus": 1}))
    assert two.placement is not None
    assert two.placement.workers == 2
    assert one.experiment.digest == two.experiment.digest
    assert [row.epoch for row in one.epochs] == [row.epoch for row in two.epochs]
    for a, b in zip(one.epochs, two.epochs, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=2e-3)
    np.testing.assert_allclose(probs(folder1, one), probs(folder2, two), atol=5e-3)


def test_no_placement_group_outlives_its_trial(cluster: Cluster) -> None:
    left = [g for g in placement_group_table().values() if g["state"] not in ("REMOVED",)]
    assert left == []
