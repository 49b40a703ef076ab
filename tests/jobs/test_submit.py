"""`orchestrator submit`: what is shipped, what is shown, and the whole of it on a real cluster."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.following import Follower
from jobs.submit import job_stem, needed_on_the_cluster, shipped
from jobs.submitted import MARK, JobResult, main, result_in
from orchestrator.spec.parsing import load_spec, parse_sweep
from orchestrator.spec.pretraining_job import load_pretraining
from tests.conftest import write_tree

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 4
RawSpec = Callable[..., dict[str, Any]]


@pytest.fixture
def spec_file(raw_spec: RawSpec, tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({**raw_spec(budget={"trials": 2}), "storage": "runs"}))
    return path


def test_a_job_runs_on_this_code_and_the_spec_as_written(spec_file: Path) -> None:
    with shipped(spec_file) as folder:
        assert (folder / "spec.yaml").read_bytes() == spec_file.read_bytes()
        module = "jobs/submitted.py"
        assert (folder / module).read_bytes() == (ROOT / module).read_bytes()
        assert (folder / "serve" / "page" / "index.html").is_file()
        assert list(folder.rglob("*.pyc")) == []
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size < 8 << 20, "it is sent with each job"
    assert not folder.exists()


def test_a_shipped_spec_means_the_same_paths(spec_file: Path) -> None:
    with shipped(spec_file) as folder:
        there = load_spec(folder / "spec.yaml", base=spec_file.parent)

    assert there == load_spec(spec_file)
    assert there.storage == str(spec_file.parent / "runs")


def test_what_the_cluster_must_reach_is_told(raw_spec: RawSpec, tmp_path: Path) -> None:
    raw = raw_spec(data={"train": "s3://bucket/train.parquet", "test": "images"})

    needed = needed_on_the_cluster(parse_sweep({**raw, "storage": "runs"}, base=tmp_path))

    assert needed == {f"{tmp_path}/images": "test", f"{tmp_path}/runs": "storage"}


def test_paths_deep_in_the_search_are_told_as_well(raw_spec: RawSpec, tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    weights.touch()
    block = {
        "strategy": "full",
        "backbone": [{"name": "mobilenetv3_small_050", "weights": str(weights)}],
    }

    needed = needed_on_the_cluster(parse_sweep(raw_spec(search=[block]), base=tmp_path))

    assert needed[str(weights)] == "weights"


def test_a_pretraining_can_be_submitted(tmp_path: Path) -> None:
    path = tmp_path / "pretrain.yaml"
    path.write_text(
        "pretraining: {backbone: {name: mobilenetv3_small_050, weights: none}, corpus: images}"
    )
    for folder in ("here", "there"):
        write_tree(tmp_path / folder / "images", 1, seed=0)
    here = load_pretraining(path, base=tmp_path / "here")

    assert needed_on_the_cluster(here) == {
        f"{tmp_path}/here/images": "files",
        f"{tmp_path}/here/runs": "storage",
    }
    stem = job_stem("pretrain", here)
    assert stem.startswith("pretrain-")
    again = load_pretraining(path, ["storage=/x"], base=tmp_path / "here")
    assert job_stem("pretrain", again) == stem
    assert job_stem("pretrain", load_pretraining(path, base=tmp_path / "there")) != stem


def test_jobs_of_one_search_share_a_stem_and_others_do_not(
    raw_spec: RawSpec, tmp_path: Path
) -> None:
    def stem(**changes: Any) -> str:
        return job_stem("sweep", parse_sweep(raw_spec(**changes), base=tmp_path))

    assert stem().startswith("sweep-colours-")
    assert stem() == stem(budget={"trials": 99}) == stem(workers={"cpus": 2})
    other = [stem(data={"train": "elsewhere"}), stem(defaults={"image_size": 64}), stem(name="x")]
    assert len({stem(), *other}) == 4
    assert job_stem("train", parse_sweep(raw_spec(), base=tmp_path)) != stem()


def test_a_result_is_found_among_whatever_else_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["backbones", "--match", "tf_efficientnet_lite0"]) == 0
    log = f"a library says {{\n{capfd.readouterr().out}(raylet) and something after it"

    result = result_in(log)

    assert result is not None
    assert result.code == 0
    assert result.document[0]["name"] == "tf_efficientnet_lite0"


def test_a_job_that_was_killed_has_no_result() -> None:
    assert result_in("[  0:01] epoch 1\n[  0:02] epo") is None


def test_a_verb_that_fails_has_its_code_and_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(tmp_path / "none.yaml")]) != 0

    result = result_in(capfd.readouterr().out)
    assert result is not None
    assert "none.yaml" in json.dumps(result.document)


@dataclass
class Cluster:
    """A dashboard whose connection breaks: each element is what one connection still gives."""

    connections: list[list[str | type[Exception]]]
    log: str
    asked: int = 0
    statuses: list[str | type[Exception]] = field(default_factory=list)

    def get_job_logs(self, job: str) -> str:
        return self.log

    def get_job_status(self, job: str) -> str:
        status = self.statuses.pop(0) if self.statuses else None
        if isinstance(status, type):
            raise status("gone")
        return status or ("RUNNING" if self.connections else "SUCCEEDED")

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for piece in self.connections.pop(0):
            if isinstance(piece, type):
                raise piece("broken")
            yield piece


def followed(cluster: Cluster) -> list[str]:
    shown: list[str] = []
    asyncio.run(Follower(cluster, show=shown.append).follow("job"))  # type: ignore[arg-type]
    return shown


def test_a_log_is_shown_in_whole_lines_and_without_the_result() -> None:
    log = f"one\ntwo\n{MARK}{{}}\nthree"
    cluster = Cluster([["on", "e\ntw", "o\n" + MARK, "{}\nth"]], log)

    assert followed(cluster) == ["one\n", "two\n", "three"]


def test_a_broken_connection_shows_nothing_twice_and_loses_nothing() -> None:
    log = "one\ntwo\nthree\nfour\n"
    cluster = Cluster([["one\ntw", RuntimeError], ["one\n", "two\nthr", OSError], [log[:9]]], log)

    assert followed(cluster) == ["one\n", "two\n", "three\n", "four\n"]


def test_a_dashboard_that_is_silent_for_a_moment_is_asked_again() -> None:
    cluster = Cluster([["one\n"]], "one\n", statuses=[ConnectionError])

    assert followed(cluster) == ["one\n"]


# On a real cluster.


def spare_ports(n: int) -> list[str]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """A head started as its users do, on spare ports, which wants a token."""
    flags = [
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
        "ray-client-server-port",
    ]
    ports = dict(zip(flags, spare_ports(len(flags)), strict=True))
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a socket's path must be short
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }
    environment.pop("PYTHONPATH", None)  # a job must run on what is shipped with it
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--num-cpus=4", f"--temp-dir={scratch}", "--node-ip-address=127.0.0.1"]
    command += ["--disable-usage-stats", *(f"--{flag}={port}" for flag, port in ports.items())]
    with open(f"{scratch}/head.log", "wb") as log:  # noqa: PTH123
        head = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=scratch
        )
    try:
        _wait_for_port(head, int(ports["dashboard-port"]), Path(scratch) / "head.log")
        yield f"http://127.0.0.1:{ports['dashboard-port']}"
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)


def _wait_for_port(head: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + 120
    while True:
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)


def submit(
    *words: str, token: str | None = TOKEN, home: Path | None = None
) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_DISABLE_IMPORT_WARNING": "1"}
    environment |= {"RAY_AUTH_TOKEN": token} if token else {}
    environment |= {"HOME": str(home)} if home else {}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "submit", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=_hears_ctrl_c,
    )


def _hears_ctrl_c() -> None:
    """Undo what a shell does to background jobs, whose children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_submitted_sweep_runs_comes_back_and_is_not_run_again(
    dashboard: str, spec_file: Path, tmp_path: Path
) -> None:
    words = ("sweep", str(spec_file), "--address", dashboard)

    detached = submit(*words)
    assert detached.stdout is not None
    detached.stdout.readline()  # the job's first words have come
    detached.send_signal(signal.SIGINT)
    _, told = detached.communicate(timeout=120)
    assert detached.returncode == 130, told
    assert f"ray job stop sweep-colours-{_digest(spec_file)}-1 --address {dashboard}" in told

    joined = submit(*words, "--json")
    output, told = joined.communicate(timeout=600)
    assert joined.returncode == 0, told
    document = json.loads(output)
    assert document["job"] == f"sweep-colours-{_digest(spec_file)}-1"
    assert "is running already" in told
    assert document["status"] == "SUCCEEDED"
    assert document["document"]["trials"] == {"ended": 2, "failed": 0, "reused": 0}
    assert Path(document["document"]["sweep"]).parent == tmp_path / "runs"

    again = submit(*words)
    output, told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert f"-2 submitted to {dashboard}" in told
    assert "accuracy" in output, "the leaderboard comes back"
    assert MARK not in output
    assert len(list((tmp_path / "runs").glob("*/trials/*/record.json"))) == 2


def _digest(spec_file: Path) -> str:
    return job_stem("sweep", load_spec(spec_file)).rpartition("-")[2]


@pytest.mark.ray
def test_a_failing_job_has_the_exit_code_of_its_verb(
    dashboard: str, raw_spec: RawSpec, tmp_path: Path
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(json.dumps(raw_spec(data={"train": "nowhere"})))

    process = submit("sweep", str(path), "--address", dashboard, "--json")
    output, told = process.communicate(timeout=300)

    document = json.loads(output)
    assert process.returncode == document["code"] == 3, told
    assert "nowhere" in document["document"]["message"]
    assert document["status"] == "FAILED"


@pytest.mark.ray
@pytest.mark.parametrize("token", [None, "f" * 64])
def test_without_its_token_a_cluster_takes_no_job(
    dashboard: str, spec_file: Path, tmp_path: Path, token: str | None
) -> None:
    process = submit(
        "sweep", str(spec_file), "--address", dashboard, "--json", token=token, home=tmp_path
    )
    output, told = process.communicate(timeout=120)

    assert process.returncode == 1, told
    assert "put it into RAY_AUTH_TOKEN" in json.loads(output)["message"]
    assert TOKEN not in output + told


def test_nobody_at_the_address_is_told(spec_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from jobs.cli import main as cli

    (port,) = spare_ports(1)
    code = cli(["submit", "sweep", str(spec_file), "--address", f"http://127.0.0.1:{port}"])

    assert code == 1
    assert f"no Ray dashboard takes jobs at http://127.0.0.1:{port}" in capfd.readouterr().err


def test_a_verb_that_needs_no_cluster_cannot_be_submitted(
    spec_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli import main as cli

    assert cli(["submit", "predict", str(spec_file)]) == 2
    assert "predict" in capfd.readouterr().err


def test_a_result_is_plain_data() -> None:
    assert result_in(f"{MARK}" + json.dumps({"code": 3, "document": None})) == JobResult(3, None)
