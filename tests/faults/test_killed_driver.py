"""`kill -9` and Ctrl-C of the driver in mid-sweep, then the same command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.orchestrator.text_material import write_encoder, write_phrases, write_texts

pytestmark = pytest.mark.ray

RawSpec = Callable[..., dict[str, object]]
PATIENCE_S = 240


@pytest.fixture
def spec_file(raw_spec: RawSpec, tmp_path: Path) -> Path:
    """A sweep of slow enough trials: six epochs on images, from a head that a bank trained."""
    search: list[Any] = raw_spec()["search"]  # type: ignore[assignment]
    slow = {**search[1], "unfreeze": [1, 2, 3], "epochs": 6, "augment": "light", "batch_size": 2}
    path = tmp_path / "sweep.yaml"
    raw = raw_spec(search=[slow], budget={"trials": 3}, tuner={"scheduler": "none"})
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def text_spec_file(tmp_path: Path) -> Path:
    """The same on texts: every layer of an encoder is fine-tuned."""
    write_texts(tmp_path / "train", 40, seed=0)
    tiny = str(write_encoder(tmp_path / "tiny", n_layers=4, width=64))
    tuned = {"strategy": "full", "backbone": tiny, "backbone_lr": [1e-5, 2e-5, 5e-5]}
    path = tmp_path / "sweep.yaml"
    raw = {
        "name": "texts",
        "task": "text-classification",
        "data": {"train": str(tmp_path / "train")},
        "search": [{**tuned, "epochs": 6, "batch_size": 2, "max_length": 64}],
        "budget": {"trials": 3},
        "tuner": {"scheduler": "none"},
        "storage": str(tmp_path / "runs"),
    }
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def adapting_spec_file(tmp_path: Path) -> Path:
    """A sweep whose first stage goes on with the pretraining of an encoder without a head."""
    write_texts(tmp_path / "train", 40, seed=0)
    write_phrases(tmp_path / "raw", 300, seed=0)
    block = {
        "strategy": "domain-adaptive",
        "then": "full",
        "backbone": str(write_encoder(tmp_path / "tiny", n_layers=4, width=64)),
        "epochs": 6,
        "backbone_lr": [1e-5, 2e-5],
        "pretraining": {"corpus": str(tmp_path / "raw"), "epochs": 6, "max_length": 64},
    }
    path = tmp_path / "sweep.yaml"
    raw = {
        "name": "adapted",
        "task": "text-classification",
        "data": {"train": str(tmp_path / "train")},
        "search": [{**block, "batch_size": 8, "max_length": 64}],
        "budget": {"trials": 3},
        "tuner": {"scheduler": "none"},
        "storage": str(tmp_path / "runs"),
    }
    path.write_text(yaml.safe_dump(raw))
    return path


def started(spec_file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "sweep", str(spec_file), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
        preexec_fn=_hears_ctrl_c,
    )


def _hears_ctrl_c() -> None:
    """Undo what a shell does to background jobs, whose children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def checkpoints(runs: Path) -> set[Path]:
    trials = runs.glob("*/trials/*/checkpoints/epoch-*/manifest.json")
    return {*trials, *runs.glob("pretrained/.*/checkpoints/epoch-*/manifest.json")}


def wait_for_new_checkpoint(process: subprocess.Popen[str], runs: Path) -> None:
    """Until a trial has written a checkpoint that was not there before."""
    before, deadline_s = checkpoints(runs), time.monotonic() + PATIENCE_S
    while not checkpoints(runs) - before:
        assert process.poll() is None, "the sweep ended before it could be stopped"
        assert time.monotonic() < deadline_s, "no trial made progress"
        time.sleep(0.05)


def ended(runs: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in runs.glob("*/trials/*/record.json")}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "spec",
    [
        "text_spec_file",
        pytest.param("spec_file", marks=pytest.mark.slow),
        pytest.param("adapting_spec_file", marks=pytest.mark.slow),
    ],
)
def test_killed_twice_the_same_command_finishes_and_repeats_nothing(
    spec: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    spec_file: Path = request.getfixturevalue(spec)
    runs = tmp_path / "runs"
    kept: dict[str, bytes] = {}
    for _ in range(2):
        process = started(spec_file)
        wait_for_new_checkpoint(process, runs)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kept |= ended(runs)
    process = started(spec_file)
    output, _ = process.communicate(timeout=PATIENCE_S * 2)
    assert process.returncode == 0
    document = json.loads(output)
    assert document["status"] == "finished"
    assert document["trials"] == {"ended": 3, "failed": 0, "reused": document["trials"]["reused"]}
    records = ended(runs)
    assert len(records) == 3
    assert {name: records[name] for name in kept} == kept
    for content in records.values():
        rows = json.loads(content)["epochs"]
        assert [row["epoch"] for row in rows] == list(range(1, 7))
    if spec == "adapting_spec_file":  # both times it was killed in the first stage
        assert [path.name[0] for path in (runs / "pretrained").iterdir()] != ["."]
    else:
        assert max(json.loads(content)["attempts"] for content in records.values()) >= 2


@pytest.mark.timeout(900)
def test_ctrl_c_ends_with_130_keeps_what_ended_and_continues(
    spec_file: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    process = started(spec_file)
    wait_for_new_checkpoint(process, runs)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert json.loads(output)["status"] == "interrupted"
    process = started(spec_file)
    output, _ = process.communicate(timeout=PATIENCE_S * 2)
    assert process.returncode == 0
    assert json.loads(output)["trials"]["ended"] == 3
