"""The command as a person uses it: serve, roll to a new version, roll back, Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.registry import Registry
from tests.orchestrator.bundle.small_bundles import image_bundle
from tests.serve.material import COLOURS, image_file, network_experiment, plain_bundle, record_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

PATIENCE_S = 240
KEY = "a-long-key-of-these-tests-alone"


@pytest.fixture
def registry(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def environment(tmp_path: Path, registry: str) -> dict[str, str]:
    """A cache of the test's own, so that no other endpoint is found."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "MLFLOW_TRACKING_URI": registry,
    }


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bundles(folder: Path) -> Iterator[Bundle]:
    """Two versions whose answers differ."""
    experiment = network_experiment()
    for number in (1, 2):
        record = record_of(experiment)
        yield image_bundle(folder / str(number), experiment, record, temperature=float(number))


def started(words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """A verb as a process that hears Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def done(words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The JSON document of a verb that must succeed."""
    output, _ = (process := started([*words, "--json"], environment)).communicate(PATIENCE_S)
    assert process.returncode == 0, output
    document: dict[str, Any] = json.loads(output)
    return document


def answered_by(port: int, name: str = "cells") -> tuple[str, str | None]:
    """The version and alias that answer an image."""
    url = f"http://127.0.0.1:{port}/v1/models/{name}:predict"
    found = httpx.post(url, content=image_file(), timeout=30).json()
    return found["version"], found["alias"]


def test_a_model_is_served_rolled_and_rolled_back(
    tmp_path: Path, registry: str, environment: dict[str, str], port: int
) -> None:
    names = Registry(registry, cache=tmp_path / "registering")
    first, second = bundles(tmp_path / "bundles")
    names.register(first, name="cells", alias="champion")
    deploy = ["deploy", "cells", "--port", str(port)]
    serving = started([*deploy, "--json"], environment)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not _is_ready(port):
            assert serving.poll() is None, serving.communicate()
            assert time.monotonic() < deadline_s, "it does not serve"
            time.sleep(0.2)
        assert answered_by(port) == ("1", "champion")

        names.register(second, name="cells", alias="champion")
        canary = done([*deploy, "--canary", "50%"], environment)
        assert canary["endpoints"][0]["bundle"] == "cells/1"
        assert {answered_by(port)[0] for _ in range(40)} == {"1", "2"}

        done(deploy, environment)
        assert {answered_by(port) for _ in range(10)} == {("2", "champion")}

        wider = started([*deploy, "--expose", "--keys", str(keys(tmp_path)), "--json"], environment)
        told, _ = wider.communicate(PATIENCE_S)
        assert wider.returncode == 2
        assert "listens at 127.0.0.1" in told

        back = done(["rollback", "cells", "--port", str(port)], environment)
        assert (back["from"], back["to"], back["rolled"]) == (2, 1, True)
        assert {answered_by(port) for _ in range(10)} == {("1", "champion")}
    finally:
        serving.send_signal(signal.SIGINT)
        output, _ = serving.communicate(timeout=PATIENCE_S)
    assert serving.returncode == 130
    assert json.loads(output)["stopped"] is True
    assert not _is_ready(port)


def test_a_moved_alias_rolls_what_follows_it(
    tmp_path: Path, registry: str, environment: dict[str, str], port: int
) -> None:
    names = Registry(registry, cache=tmp_path / "registering")
    first, second = bundles(tmp_path / "bundles")
    broken = plain_bundle(tmp_path / "broken", kind="image-classification", labels=COLOURS)
    for name in ("cells", "other"):
        names.register(first, name=name, alias="champion")
    deploy = ["deploy", "cells", "other", "--port", str(port), "--follow", "1", "--detach"]
    detached = done(deploy, environment)
    log = Path(detached["log"])
    try:
        assert answered_by(port) == ("1", "champion")
        for bundle, told in ((second, "cells/1 → cells/2"), (broken, "stays as it is")):
            names.register(bundle, name="cells", alias="champion")
            deadline_s = time.monotonic() + PATIENCE_S
            while told not in log.read_text() or answered_by(port)[0] == "1":
                assert time.monotonic() < deadline_s, log.read_text()
                time.sleep(0.2)
        names.register(second, name="other", alias="champion")
        while "other/1 → other/2" not in log.read_text() or answered_by(port, "other")[0] == "1":
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.2)
        time.sleep(3)
        assert log.read_text().count("→ cells/3") == 1  # it is not tried again and again
        assert answered_by(port) == ("2", "champion")
    finally:
        done(["undeploy", "--port", str(port)], environment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(detached["pid"], signal.SIGTERM)


@pytest.mark.slow
def test_an_exposed_model_asks_for_a_key_and_slow_requests_are_cut(
    tmp_path: Path, environment: dict[str, str], port: int
) -> None:
    bundle, _ = bundles(tmp_path / "bundles")
    words = ["deploy", "--bundle", f"cells={bundle.path}", "--port", str(port), "--expose"]
    detached = done([*words, "--keys", str(keys(tmp_path)), "--detach"], environment)
    url = f"http://127.0.0.1:{port}/v1/models/cells:predict"
    try:
        answers = [
            httpx.post(url, content=image_file(), headers={"X-API-Key": key}, timeout=30)
            for key in (KEY, KEY[::-1])
        ]
        assert [answer.status_code for answer in answers] == [200, 403]
        head = b"POST /v1/models/cells:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n"
        slow = [(head, 408), (head + b"\r\n1234", 408)]  # in the head, and in the body
        with contextlib.ExitStack() as opened:
            began_s = time.monotonic()
            sent = [(opened.enter_context(_sending(port, text)), code) for text, code in slow]
            for connection, status in sent:
                assert connection.recv(12) == b"HTTP/1.1 %d" % status
        assert 10 < time.monotonic() - began_s < 30
    finally:
        done(["undeploy", "--port", str(port)], environment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(detached["pid"], signal.SIGTERM)


def _sending(port: int, text: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(text)
    return connection


def keys(folder: Path) -> Path:
    """A file with one key."""
    path = folder / "keys"
    path.touch(mode=0o600)
    path.write_text(f"someone {KEY}\n")
    return path


def test_models_are_put_into_service_at_the_same_time_and_taken_out_one_by_one(
    tmp_path: Path, environment: dict[str, str], port: int
) -> None:
    first, second = bundles(tmp_path / "bundles")
    served = ["deploy", "--port", str(port), "--bundle"]
    detached = done([*served, f"cells={first.path}", "--detach"], environment)
    try:
        names = ("other", "third")
        added = [started([*served, f"{name}={second.path}"], environment) for name in names]
        assert [one.wait(PATIENCE_S) for one in added] == [0, 0]
        listed = httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5).json()["models"]
        assert {one["name"] for one in listed} == {"cells", *names}
        unknown = started(["undeploy", "cell", "--port", str(port), "--json"], environment)
        told, _ = unknown.communicate(PATIENCE_S)
        assert unknown.returncode == 2
        assert "Did you mean 'cells'?" in told
        left = done(["undeploy", *names, "--port", str(port)], environment)
        assert (sorted(left["stopped"]), left["served"]) == ([*names], ["cells"])
        assert answered_by(port)[0]
        path = f"http://127.0.0.1:{port}/v1/models/other"
        assert httpx.get(path, timeout=5).status_code == 404
        left = done(["undeploy", "--port", str(port)], environment)
        assert left == {"stopped": ["cells"], "served": []}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(detached["pid"], signal.SIGTERM)
    assert not _is_ready(port)
    again = started(["undeploy", "--port", str(port), "--json"], environment)
    told, _ = again.communicate(PATIENCE_S)
    assert again.returncode == 2
    assert "nothing that was deployed on this machine serves at port" in told


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
