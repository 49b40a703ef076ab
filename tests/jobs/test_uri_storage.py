"""A sweep at a URI whose driver and trials share no disk; then other machines take it up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from orchestrator.spec.object_store import Stored
from tests.object_storage import CREDENTIALS, Node

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]

# The processes of a local cluster keep the environment that it was started in.
APART = """\
import os, sys
from jobs.cli import main
from orchestrator.runtime.cluster import joined_cluster
workers, driver, spec = sys.argv[1:]
os.environ["ORCHESTRATOR_CACHE"] = workers
with joined_cluster(cpus=2):
    os.environ["ORCHESTRATOR_CACHE"] = driver
    code = main(["sweep", spec, "--json"])
sys.exit(code)
"""


def test_a_sweep_at_a_uri_is_taken_up_by_any_machine(
    make_spec: Callable[..., dict[str, Any]],
    storage_uri: str,
    become: Node,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    raw = make_spec(storage_uri, budget={"trials": 2})
    spec = tmp_path / "sweep.yaml"
    spec.write_text(json.dumps(raw))
    workers, driver = tmp_path / "nodes" / "workers", tmp_path / "nodes" / "driver"
    done = subprocess.run(
        [sys.executable, "-c", APART, str(workers), str(driver), str(spec)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["trials"]["ended"] == 2
    assert document["trials"]["failed"] == 0
    assert document["sweep"].startswith(f"{storage_uri}/colours-")
    assert not list(driver.rglob("checkpoints")), "the driver has seen no checkpoint"
    assert not list(workers.rglob("sweep.json")), "the trials have seen nothing of the driver's"

    def again(*words: str) -> Any:
        """A verb on a machine that has seen nothing of the sweep."""
        become(" ".join(words)[:12])
        capfd.readouterr()
        assert main([*words, "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    same = again("sweep", str(spec))
    assert {**same, "seconds": 0} == {**document, "seconds": 0}, "no trial ran again"
    report = again("report", document["sweep"])
    assert report["report"] == f"{document['sweep']}/report.html"
    assert b"<!doctype html>" in (Stored(report["report"]).read() or b"")
    promoted = again("promote", document["sweep"], "--name", "colours")
    assert promoted["test"] == document["test"]
    bundles = Stored(f"{document['sweep']}/bundles/{promoted['trial']}")
    assert {"bundle.json", "model.safetensors"} <= bundles.names()
    _holds_no_credentials(storage_uri)


def _holds_no_credentials(uri: str) -> None:
    stored = Stored(uri)
    for name in stored.tree():
        content = stored.below(name).read() or b""
        assert not [v for k, v in CREDENTIALS.items() if "KEY" in k and v.encode() in content]


def test_a_storage_that_cannot_be_written_is_told_before_anything_is_read(
    make_spec: Callable[..., dict[str, Any]],
    storage_uri: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    spec = tmp_path / "sweep.yaml"
    raw = make_spec("s3://no-such-bucket/runs")
    spec.write_text(json.dumps(raw))
    for verb in ("sweep", "train", "plan"):
        assert main([verb, str(spec), "--json"]) == 1
        out, err = capfd.readouterr()
        assert json.loads(out)["error"] == "StorageError"
        assert "s3://no-such-bucket/runs: there is no such bucket. Create it" in err
        assert "checked" not in err
