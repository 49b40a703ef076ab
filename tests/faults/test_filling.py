"""What goes wrong while the feature store is filled: nothing wrong is read, and work resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from orchestrator.data.examples import Examples
from orchestrator.features.filling import compute_features, search_rows
from orchestrator.features.store import MANIFEST, FeatureKey, FeatureStore
from orchestrator.models.building import build_backbone
from orchestrator.runtime.folders import SweepFolder
from tests.conftest import BACKBONE, write_tree

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

Run = Callable[..., subprocess.Popen[str]]
VIEWS, N_IMAGES, PATIENCE_S = 4, 270, 200


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("pictures"), N_IMAGES // 3, seed=0)


@pytest.fixture
def run(pictures: Path, tmp_path: Path) -> Run:
    """Starts a sweep of one head whose features take three parts for each of four views."""

    def start(name: str) -> subprocess.Popen[str]:
        block = {"strategy": "feature-extraction", "backbone": BACKBONE, "views": VIEWS}
        raw: dict[str, Any] = {
            "name": name,
            "task": "image-classification",
            "data": {"train": str(pictures)},
            "search": [{**block, "image_size": 224, "epochs": 1, "predict_views": VIEWS}],
            "budget": {"trials": 1, "store_gb": 1},
            "storage": str(tmp_path / "runs"),
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(raw))
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", "sweep", str(path), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            start_new_session=True,
        )

    return start


def finished(process: subprocess.Popen[str]) -> SweepFolder:
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors[-2000:]
    document = json.loads(output)
    assert document["trials"] == {"ended": 1, "failed": 0, "reused": 0}
    return SweepFolder(Path(document["sweep"]))


def parts(store: Path) -> dict[Path, int]:
    """The store's finished parts, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in store.glob("*/part-*.arrow")}


def assert_right(store: Path, sweep: SweepFolder) -> None:
    """Every entry is whole, and its first and last rows are what the backbone says."""
    (record,) = sweep.records().values()
    examples = Examples.open(sweep / "data")
    rows = search_rows(examples)
    some = np.array([0, 200, len(rows) - 1])
    backbone = build_backbone(record.experiment.backbone, size=224)
    manifests = sorted(store.glob(f"*/{MANIFEST}"))
    assert len(manifests) == VIEWS
    for manifest in manifests:
        key = FeatureKey.model_validate(json.loads(manifest.read_bytes())["key"])
        found = FeatureStore(store).find(key)
        assert found is not None
        assert len(found) == N_IMAGES
        expected = compute_features(
            backbone,
            examples,
            rows[some],
            contract=record.experiment.input,
            pooling="last",
            view=key.view,
            device=torch.device("cpu"),
            threads=1,
        )
        np.testing.assert_allclose(found.take(some), expected, rtol=1e-3, atol=1e-4)
    assert not list(store.glob("*/.*.tmp"))


def test_killed_while_filling_it_goes_on_with_the_parts_that_lack(run: Run, tmp_path: Path) -> None:
    store = tmp_path / "runs" / "features"
    process = run("killed")
    deadline_s = time.monotonic() + PATIENCE_S
    while not parts(store):
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline_s, "nothing was filled"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = parts(store)
    assert 0 < len(kept) < 3 * VIEWS
    for left in store.glob("*/.*.tmp"):  # of the killed tasks; swept up a day later
        left.unlink()
    sweep = finished(run("killed"))
    now = parts(store)
    assert len(now) == 3 * VIEWS
    assert {path: now[path] for path in kept} == kept
    assert_right(store, sweep)


@pytest.mark.slow
def test_two_sweeps_at_once_fill_the_same_entries(run: Run, tmp_path: Path) -> None:
    both = [run(name) for name in ("one", "other")]
    for sweep in [finished(process) for process in both]:
        assert_right(tmp_path / "runs" / "features", sweep)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The store's folder on a file system of 1 MiB."""
    store = tmp_path / "runs" / "features"
    store.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(store)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield store
    subprocess.run(["umount", str(store)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_work_resumes_once_there_is_room(
    run: Run, small_disk: Path
) -> None:
    process = run("full")
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "No space left on device" in errors
    assert "Traceback" not in errors
    assert json.loads(output)["error"]
    kept = parts(small_disk)
    assert kept
    assert not list(small_disk.glob("*/.*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    sweep = finished(run("full"))
    now = parts(small_disk)
    assert {path: now[path] for path in kept} == kept
    assert_right(small_disk, sweep)
