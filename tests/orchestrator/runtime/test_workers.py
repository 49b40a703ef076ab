"""Trials on Ray Train workers: as in the Tune actor, one after the other, and when one dies."""

import threading
import time
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
from tests.faults.serving_load import kill, processes

pytestmark = pytest.mark.ray

RawSpec = Callable[..., dict[str, object]]
PATIENCE_S = 240


def run(raw: dict[str, object]) -> tuple[SweepFolder, Record]:
    outcome = run_sweep(parse_sweep(raw, base=Path.cwd()))
    assert outcome.status == "finished"
    folder = SweepFolder(outcome.folder)
    (record,) = folder.records().values()
    assert record.status == "finished", record.reason
    return folder, record


def assert_on_two_as_on_one(two: Record, one: Record) -> None:
    """Two workers have trained the experiment of one, with its losses."""
    assert two.placement is not None
    assert two.placement.workers == 2
    assert one.experiment.digest == two.experiment.digest
    assert [row.epoch for row in one.epochs] == [row.epoch for row in two.epochs]
    for a, b in zip(one.epochs, two.epochs, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=2e-3)


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
    assert_on_two_as_on_one(two, one)
    np.testing.assert_allclose(probs(folder1, one), probs(folder2, two), atol=5e-3)


@pytest.mark.timeout(600)
def test_workers_are_kept_for_the_next_trial_until_one_of_them_dies(
    cluster: Cluster, raw_spec: RawSpec, tmp_path: Path
) -> None:
    search: list[Any] = raw_spec()["search"]  # type: ignore[assignment]
    block = {**search[1], "unfreeze": 2, "augment": "light", "epochs": 2, "batch_size": 4}
    raw = raw_spec(
        search=[{**block, "seed": [0, 1, 2, 3]}],
        budget={"trials": 4},
        tuner={"searcher": "grid", "scheduler": "none"},
        workers={"per_trial": 2, "cpus": 2},  # of the cluster's four: one trial after the other
    )
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_in_the_third, args=(tmp_path / "runs", killed))
    killer.start()
    outcome = run_sweep(parse_sweep(raw, base=tmp_path))
    killer.join()

    records = [*SweepFolder(outcome.folder).records().values()]
    assert [record.reason for record in records] == [""] * 4
    assert len(killed) == 1
    assert all([row.epoch for row in record.epochs] == [1, 2] for record in records)
    by_start = sorted(records, key=lambda record: record.started_at)
    first, second, third, fourth = (record.start_up_seconds for record in by_start)
    assert second < first / 3
    assert fourth > second * 3
    assert third > second  # that of the process that went on after the kill


def kill_one_in_the_third(runs: Path, killed: list[int]) -> None:
    """SIGKILL a worker once two trials have ended and the third has written a checkpoint."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s and not killed:
        ended = {path.parent for path in runs.glob("*/trials/*/record.json")}
        begun = {path.parents[2] for path in runs.glob("*/trials/*/checkpoints/*/manifest.json")}
        if len(ended) == 2 and begun - ended:
            killed += processes("RayTrainWorker")[:1]
            kill(killed[0])
        time.sleep(0.05)


def test_no_placement_group_outlives_its_trial(cluster: Cluster) -> None:
    left = [g for g in placement_group_table().values() if g["state"] not in ("REMOVED",)]
    assert left == []
