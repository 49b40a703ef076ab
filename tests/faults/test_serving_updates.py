"""Versions replaced and replicas killed while clients ask: nobody goes without an answer."""

from __future__ import annotations

import base64
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import ray
from ray import serve

from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.predictor import load_predictor
from orchestrator.errors import OrchestratorError, SpecError
from serve.addresses import Address
from serve.app import AppSettings, UnknownSettingsError, running_settings, stop_app
from serve.client import Client
from serve.limits import Limits
from serve.tally import tally
from tests.faults.conftest import Site
from tests.faults.serving_load import Load, bare, kill, processes, retrying
from tests.orchestrator.clip_material import unseen_file
from tests.serve.material import COLOURS, image_file, plain_bundle

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

IMAGE = image_file((200, 40, 10), size=(500, 375), form="JPEG")
REPLICA = "ServeReplica:orchestrator:"
PROXY, CONTROLLER = "ProxyActor", "ServeController"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A version that cannot start: its weights are no weights."""
    return plain_bundle(tmp_path / "broken", kind="image-classification", labels=COLOURS).path


def answering(site: Site) -> str:
    """The digest of the version that answers now."""
    with Client(site.url) as client:
        return client.predict("cells", IMAGE).digest


def digests(load: Load) -> set[str]:
    """Of every version that answered, after a look at whether each gave one answer alone."""
    for version, told in load.versions.items():
        assert len(told) == 1, (version, told)
    return {digest for _, digest in load.versions}


def test_images_texts_and_a_clip_are_served_by_one_application_as_offline(
    site: Site, versions: tuple[Path, Path], texts: Path, shapes: Path
) -> None:
    site.run(
        {"name": "cells", "bundle": str(versions[0])},
        {"name": "news", "bundle": str(texts)},
        {"name": "own", "bundle": str(versions[1]), "own": True, "min_replicas": 0},
        {"name": "shapes", "bundle": str(shapes), "own": True, "min_replicas": 0},
    )
    assert len(processes(REPLICA)) == 1  # the others start when they are first asked
    text = "the cat and the dog"
    asked: dict[str, tuple[Path, bytes | str]] = {
        "cells": (versions[0], IMAGE),
        "own": (versions[1], IMAGE),
        "news": (texts, text),
    }
    with Client(site.url) as client:
        assert {entry.name for entry in client.models()} == {*asked, "shapes"}
        labels = ["red circle", "green square", "blue triangle"]
        (shape,) = client.predict("shapes", unseen_file(("green", "square")), labels=labels).answers
        assert shape.label == "green square"  # type: ignore[union-attr]
        for name, (folder, value) in asked.items():
            (answer,) = client.predict(name, value).answers
            (offline,) = load_predictor(open_bundle(folder)).predict([value])
            assert answer.label == offline["label"]  # type: ignore[union-attr]
            told = answer.probabilities  # type: ignore[union-attr]
            assert told == pytest.approx(offline["probabilities"], abs=1e-5)
    page = httpx.get(site.url)
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert httpx.get(f"{site.url}/readyz").json()["ready"] is True
    named = httpx.get(f"{site.url}/v1/none", headers={"x-request-id": "a-1"})
    assert named.headers.get_list("x-request-id") == [named.json()["instance"]] == ["a-1"]
    counts = httpx.get(f"{site.url}/metrics").text
    assert 'orchestrator_requests_total{model="own",outcome="ok"' in counts
    pids = processes(REPLICA)
    assert len(pids) == 3
    with_torch = [pid for pid in pids if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]
    assert len(with_torch) == 1  # the CLIP's: its text tower has no model.onnx


def test_requests_that_pass_a_trunk_together_are_answered_as_offline(
    site: Site, versions: tuple[Path, Path]
) -> None:
    names = [f"cells-{n}" for n in range(2)]
    endpoints = zip(names, versions, strict=True)
    site.run(*({"name": name, "bundle": str(path), "batch_rows": 8} for name, path in endpoints))
    images = [image_file((20 * n, 200 - 10 * n, 30), size=(90, 60)) for n in range(10)]
    asked = [
        (name, path, image) for name, path in zip(names, versions, strict=True) for image in images
    ]
    with Client(site.url) as client, ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda one: client.predict(one[0], one[2]), asked))
    predictors = {path: load_predictor(open_bundle(path)) for path in versions}
    for (_, path, image), prediction in zip(asked, found, strict=True):
        (offline,) = predictors[path].predict([image])
        told = prediction.answers[0].probabilities  # type: ignore[union-attr]
        assert told == pytest.approx(offline["probabilities"], abs=1e-5)


def test_an_update_under_load_fails_no_request_and_mixes_no_versions(
    site: Site, versions: tuple[Path, Path]
) -> None:
    site.run({"name": "cells", "bundle": str(versions[0])})
    with Load([bare(site.url, "cells", IMAGE) for _ in range(2)], every_s=0.02) as load:
        load.wait_for(50)
        site.run({"name": "cells", "bundle": str(versions[1])})
        load.wait_for(50)
    assert not load.faults, load.ended
    assert digests(load) == {open_bundle(path).digest for path in versions}


def test_an_update_that_cannot_start_leaves_what_runs(
    site: Site, versions: tuple[Path, Path], broken: Path
) -> None:
    site.run({"name": "cells", "bundle": str(versions[0])})
    before = running_settings()
    assert isinstance(before, AppSettings)
    (replica,) = processes(REPLICA)
    with Load([bare(site.url, "cells", IMAGE)], every_s=0.05) as load:
        load.wait_for(10)
        with pytest.raises(OrchestratorError, match="a replica does not start"):
            site.run({"name": "cells", "bundle": str(broken)})
        load.wait_for(10)
    assert not load.faults, load.ended
    assert digests(load) == {open_bundle(versions[0]).digest}
    assert running_settings() == before
    assert processes(REPLICA) == [replica]  # it went on, and one that dies is replaced again
    kill(replica)
    deadline_s = time.monotonic() + 30
    while processes(REPLICA) in ([], [replica]):
        assert time.monotonic() < deadline_s, "the replica was not replaced"
        time.sleep(0.1)
    site.run({"name": "cells", "bundle": str(versions[0])})
    assert answering(site) == open_bundle(versions[0]).digest


def test_an_interrupted_update_is_undone(
    site: Site, versions: tuple[Path, Path], broken: Path
) -> None:
    site.run({"name": "cells", "bundle": str(versions[0])})
    before = running_settings()
    earlier = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 2)
        with pytest.raises(KeyboardInterrupt):
            site.run({"name": "cells", "bundle": str(broken)})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
    assert running_settings() == before
    site.run({"name": "cells", "bundle": str(versions[0])})
    assert answering(site) == open_bundle(versions[0]).digest


def test_what_is_served_may_be_replaced_when_its_files_are_gone(
    site: Site, versions: tuple[Path, Path], broken: Path, tmp_path: Path
) -> None:
    gone = shutil.copytree(versions[0], tmp_path / "gone")
    site.run({"name": "cells", "bundle": str(gone)})
    shutil.rmtree(gone)
    told = "a replica does not start.*What was served until now cannot be started again either"
    with pytest.raises(OrchestratorError, match=f"(?s){told}"):
        site.run({"name": "cells", "bundle": str(broken)})
    site.run({"name": "cells", "bundle": str(versions[1])})
    assert answering(site) == open_bundle(versions[1]).digest


def test_a_request_that_is_late_stops_in_a_replica_of_its_own(
    site: Site, versions: tuple[Path, Path]
) -> None:
    own = {"name": "cells", "bundle": str(versions[0]), "own": True}
    site.run(own, limits=Limits(answer_s=1.0))
    image = base64.b64encode(image_file((90, 40, 10), size=(5000, 5000))).decode()
    body = {"inputs": [{"image": image}] * 32}  # some ten seconds of decoding
    late = httpx.post(f"{site.url}/v1/models/cells:predict", json=body, timeout=30)
    assert late.status_code == 504
    (pid,) = processes(f"{REPLICA}cells")
    replica = psutil.Process(pid)
    time.sleep(1)  # an image is decoded to its end
    before = replica.cpu_times()
    time.sleep(2)
    after = replica.cpu_times()
    assert after.user - before.user < 0.5


def test_a_first_application_that_cannot_start_leaves_nothing(
    site: Site, versions: tuple[Path, Path], broken: Path
) -> None:
    site.run({"name": "cells", "bundle": str(versions[0])})
    stop_app()
    with pytest.raises(OrchestratorError, match="a replica does not start"):
        site.run({"name": "cells", "bundle": str(broken)})
    assert running_settings() is None
    site.run({"name": "cells", "bundle": str(versions[0])})


def test_replicas_that_would_be_as_they_are_go_on(
    site: Site, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    one = {"name": "cells", "bundle": str(versions[0])}
    own = {"name": "own", "bundle": str(versions[1]), "own": True}
    site.run(one, own)
    before = set(processes(REPLICA))
    assert len(before) == 2
    site.run(one, {**own, "max_replicas": 2})
    assert set(processes(REPLICA)) == before
    site.run({**one, "bundle": str(versions[1])}, own)
    after = set(processes(REPLICA))
    assert len(after & before) == 1  # the one of `own`, which nothing was changed of
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text("someone a-long-key-of-these-tests-alone\n")
    site.run({**one, "bundle": str(versions[1])}, own, keys_file=keys)
    assert httpx.get(f"{site.url}/v1/models", timeout=30).status_code == 401
    site.run({**one, "bundle": str(versions[1])}, own)


def test_what_other_machines_reach_is_not_served_without_keys(
    site: Site, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"name": "cells", "bundle": str(versions[0])}
    site.run(one)
    monkeypatch.setattr("serve.app._listens", lambda: Address("0.0.0.0", site.port))
    with pytest.raises(SpecError, match=r"listens at 0\.0\.0\.0: everyone could ask.*--keys FILE"):
        site.run({**one, "bundle": str(versions[1])})
    assert answering(site) == open_bundle(versions[0]).digest


def test_a_version_cannot_prove_itself_beside_itself(
    site: Site, versions: tuple[Path, Path]
) -> None:
    beside = {"bundle": str(versions[0]), "share": 0.1}
    with pytest.raises(SpecError, match="cannot prove itself beside itself"):
        site.run({"name": "cells", "bundle": str(versions[0]), "candidate": beside})


def test_replicas_are_added_under_load_and_counts_add_up(
    site: Site, versions: tuple[Path, Path]
) -> None:
    one = {"name": "cells", "bundle": str(versions[0]), "min_replicas": 1, "max_replicas": 2}
    site.run(one, at_once=1, within_ms=1.0)
    (first,) = processes(REPLICA)
    counted = _counted(site)
    with Load([bare(site.url, "cells", IMAGE) for _ in range(8)]) as load:
        deadline_s = time.monotonic() + 60
        while len(processes(REPLICA)) < 2:
            assert time.monotonic() < deadline_s, "no replica was added"
            time.sleep(0.2)
        load.wait_for(100)
    assert not load.faults, load.ended
    assert first in processes(REPLICA)
    # Another version replaces both replicas; what they counted last is not lost.
    site.run({"name": "cells", "bundle": str(versions[1])}, at_once=1)
    deadline_s = time.monotonic() + 60
    while len(processes(REPLICA)) > 1:
        assert time.monotonic() < deadline_s, "the replicas of the last version did not end"
        time.sleep(0.2)
    assert _counted(site) - counted == load.ended["answered"]


def _counted(site: Site) -> float:
    """Requests for `cells` that were answered, as `/metrics` has it."""
    lines = httpx.get(f"{site.url}/metrics", timeout=30).text.splitlines()
    wanted = 'orchestrator_requests_total{model="cells",outcome="ok"'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted))


def test_what_nobody_remembers_is_replaced_and_never_changed(
    site: Site, versions: tuple[Path, Path]
) -> None:
    one = {"name": "cells", "bundle": str(versions[0])}
    site.run(one)
    assert running_settings() is not None
    ray.kill(tally(), no_restart=False)
    with pytest.raises(UnknownSettingsError, match="--only"):
        running_settings()
    site.run(one)
    assert running_settings() is not None


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.1})
class Neighbour:
    """Somebody else's application."""

    def __call__(self, _request: object) -> str:
        return "here"


def test_our_application_ends_alone(site: Site, versions: tuple[Path, Path]) -> None:
    site.run({"name": "cells", "bundle": str(versions[0])})
    serve.run(Neighbour.bind(), name="neighbour", route_prefix="/neighbour")
    stop_app()
    assert set(serve.status().applications) == {"neighbour"}
    assert running_settings() is None
    assert httpx.get(f"{site.url}/neighbour", timeout=30).text == "here"
    serve.delete("neighbour")


def test_a_request_id_that_is_no_utf_8_fails_in_ray_and_nobody_else(
    site: Site, versions: tuple[Path, Path]
) -> None:
    site.run({"name": "cells", "bundle": str(versions[0])})
    found = httpx.get(f"{site.url}/healthz", headers={b"x-request-id": b"\xff"}, timeout=30)
    assert found.status_code == 500
    assert httpx.get(f"{site.url}/healthz", timeout=30).status_code == 200


def test_what_the_cluster_has_no_place_for_is_told(site: Site, versions: tuple[Path, Path]) -> None:
    one = {"name": "cells", "bundle": str(versions[0])}
    with pytest.raises(OrchestratorError, match="has not started in 5 s"):
        site.run(one, cpus=1000.0, patience_s=5)
    site.run(one)
    assert httpx.get(f"{site.url}/readyz").status_code == 200


def test_a_killed_replica_costs_our_client_nothing_and_is_soon_replaced(
    site: Site, versions: tuple[Path, Path]
) -> None:
    twice = {"min_replicas": 2, "max_replicas": 2}
    site.run({"name": "cells", "bundle": str(versions[0]), **twice})
    _kill_under_load(site, kills=1)


def _kill_under_load(site: Site, *, kills: int) -> None:
    clients = [retrying(site.url, "cells", IMAGE) for _ in range(2)]
    with Load(clients, every_s=0.02) as load:
        for _ in range(kills):
            load.wait_for(30)
            before = processes(REPLICA)
            assert len(before) == 2
            kill(before[0])
            killed_s = time.monotonic()
            while len(set(processes(REPLICA)) - {before[0]}) < 2:
                assert time.monotonic() - killed_s < 30, "the replica was not replaced"
                time.sleep(0.1)
            load.wait_for(30)
    assert not load.faults, load.ended


@pytest.mark.slow
@pytest.mark.parametrize("title", [PROXY, CONTROLLER])
def test_a_killed_proxy_or_controller_costs_our_client_nothing(
    site: Site, versions: tuple[Path, Path], title: str
) -> None:
    site.run({"name": "cells", "bundle": str(versions[0])})
    # Nobody listens until a proxy is replaced: more tries than the client makes on its own.
    clients = [retrying(site.url, "cells", IMAGE, retries=12) for _ in range(2)]
    with Load(clients, every_s=0.02) as load:
        load.wait_for(30)
        (before,) = processes(title)
        kill(before)
        killed_s = time.monotonic()
        while processes(title) in ([], [before]):
            assert time.monotonic() - killed_s < 15, f"{title} was not replaced"
            time.sleep(0.1)
        load.wait_for(60)
    assert not load.faults, load.ended
    # What was killed works again: the endpoint can be updated.
    site.run({"name": "cells", "bundle": str(versions[1])})
    with Load(clients[:1]) as load:
        load.wait_for(5)
    assert digests(load) == {open_bundle(versions[1]).digest}
