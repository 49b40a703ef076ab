"""S5 and S6: versions replaced, and processes killed, while clients ask; who gets no answer.

Both are done to the endpoint that `orchestrator deploy` starts: before HAProxy (`--expose`), and
before the plain proxy.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import ray
from ray import serve

from jobs.serving_cluster import earlier_endpoint
from orchestrator.bundle.bundle import open_bundle
from tests.benchmarks.bundles import copies, write_random_bundle
from tests.benchmarks.endpoints import KEY, NAME, deploying, endpoint, free_port, request_of
from tests.benchmarks.harness import Measured
from tests.benchmarks.http_load import load
from tests.benchmarks.serving import BACKBONES, OURS, photograph
from tests.faults.serving_load import Ask, Load, bare, kill, processes, retrying

REPLICAS, CLIENTS = 2, 4
UPDATES, REQUESTS, SHARE = 10, 10_000, 0.7  # of S5; the load as a share of capacity
KILLS, BETWEEN_KILLS_S = 6, 10.0  # of S6
EVERY_S = 0.05  # between the requests of a client in S6
PATIENCE_S = 60.0
REPLICA, CONTROLLER = "ServeReplica:orchestrator:", "ServeController"
PROXIES = {"ours": "ProxyActor", "exposed": "haproxy"}


@dataclass(frozen=True)
class Place:
    """An endpoint with two replicas.

    Attributes:
        kind: `ours` (before the plain proxy) or `exposed` (before HAProxy).
        folder: Of the bundle that it began with.
        port: Where it listens.
        pid: Of the command that started it.
        joined: A process that has joined its cluster.
    """

    kind: str
    folder: Path
    port: int
    pid: int
    joined: ProcessPoolExecutor

    def bare_clients(self) -> list[Ask]:
        """Clients that never ask twice."""
        return [bare(self._url, NAME, photograph(), key=self._key) for _ in range(CLIENTS)]

    def our_clients(self) -> list[Ask]:
        """The product's own, with more tries than they make by themselves."""
        settings = {"key": self._key, "retries": 12}
        return [retrying(self._url, NAME, photograph(), **settings) for _ in range(CLIENTS)]

    def processes(self, title: str) -> list[int]:
        """Ids of the cluster's processes of a title."""
        return processes(title, started_by=self.pid)

    def ready(self) -> int:
        """Replicas that answer, as Serve has it."""
        return self.joined.submit(_ready).result()

    def update(self, folder: Path) -> None:
        """Roll it to another bundle, as a user does; returns when only that is served."""
        words = deploying(self.kind, {NAME: folder}, port=self.port, threads=_threads(),
                          replicas=REPLICAS)  # fmt: skip
        subprocess.run(words, check=True, capture_output=True)

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def _key(self) -> str | None:
        return KEY if self.kind == "exposed" else None


def s5(folder: Path) -> list[Measured]:
    """Ten updates, each by the command that a user gives, at 70 % of what the endpoint can."""
    rows = []
    for kind, name in OURS.items():
        with _place(kind, folder / kind) as place:
            versions = copies(open_bundle(place.folder), folder / f"{kind}-versions", 3)[1:]
            request = request_of(kind, photograph())
            load(place.port, request, clients=CLIENTS, seconds=3)
            capacity = load(place.port, request, clients=CLIENTS, seconds=6).per_s
            with Load(place.bare_clients(), every_s=CLIENTS / (SHARE * capacity)) as asked:
                for number in range(UPDATES):
                    asked.wait_for(REQUESTS // UPDATES, patience_s=600)
                    place.update(versions[number % 2].path)
        assert asked.total >= REQUESTS
        assert len(asked.versions) == 3
        beside = {
            "requests": asked.total,
            "capacity_per_s": capacity,
            "p99_ms": asked.percentile_ms(99),
            **_came_to(asked),
        }
        mixed = sum(len(told) - 1 for told in asked.versions.values())
        what = f"{UPDATES} updates at {100 * SHARE:g} % of capacity behind {name}"
        rows += [
            _none(
                "S5", f"{what}: failed requests of {REQUESTS:,} or more", len(asked.faults), beside
            ),
            _none("S5", f"{what}: answers that are of no one version", mixed),
        ]
    return rows


def s6(folder: Path) -> list[Measured]:
    """SIGKILL for a replica six times, for the controller, and for the proxy.

    The product's own client asks; behind HAProxy also clients that never ask twice, but for the
    proxy's death, which cuts the connections that it holds.
    """
    return [row for kind in OURS for row in _killing(kind, folder / kind)]


def _killing(kind: str, folder: Path) -> list[Measured]:
    behind = f"behind {OURS[kind]}"
    with _place(kind, folder) as place:
        ours = ("our client", place.our_clients())
        strict = ("clients that never ask twice", place.bare_clients())
        both = [ours, strict] if kind == "exposed" else [ours]
        rows = [
            row for who, clients in both for row in _replicas_killed(place, behind, who, clients)
        ]
        for title, called in ((CONTROLLER, "the controller"), (PROXIES[kind], "the proxy")):
            who, clients = ours if title == PROXIES[kind] else both[-1]
            with Load(clients, every_s=EVERY_S) as asked:
                asked.wait_for(20)
                replaced_s = _killed(place, title)
                asked.wait_for(200)
            what = f"{called} killed {behind}: failed requests of {who}"
            beside = {"seconds_until_replaced": replaced_s, "slowest_s": max(asked.seconds)}
            rows.append(_none("S6", what, len(asked.faults), {**beside, **_came_to(asked)}))
    return rows


def _replicas_killed(place: Place, behind: str, who: str, clients: list[Ask]) -> Iterator[Measured]:
    full_s = []
    with Load(clients, every_s=EVERY_S) as asked:
        for _ in range(KILLS):
            asked.wait_for(20)
            full_s.append(_killed(place, REPLICA, until=lambda: place.ready() == REPLICAS))
            time.sleep(max(0.0, BETWEEN_KILLS_S - full_s[-1]))
    what = f"a replica killed {KILLS} times {behind}"
    beside = {"seconds_until_full": full_s, **_came_to(asked)}
    yield _none("S6", f"{what}: failed requests of {who}", len(asked.faults), beside)
    yield Measured("S6", f"{what}: longest until both answer", max(full_s), "≤ 15 s", unit=" s")


def _none(id_: str, what: str, value: int, beside: dict[str, object] | None = None) -> Measured:
    return Measured(id_, what, float(value), "≤ 0", beside or {}, unit="")


def _came_to(asked: Load) -> dict[str, object]:
    return {"ended": dict(asked.ended), "faults": asked.faults[:5]}


@contextmanager
def _place(kind: str, folder: Path) -> Iterator[Place]:
    bundle, port = write_random_bundle(folder / "bundle", BACKBONES[0]), free_port()
    started = endpoint(
        kind, bundle.path, BACKBONES[0], port=port, threads=_threads(), replicas=REPLICAS
    )
    with started as pid, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as joined:
        running = earlier_endpoint(port)
        assert running is not None
        with mock.patch.dict(os.environ, RAY_AUTH_MODE="token"):  # Ray reads it when imported
            joined.submit(_join, running.address).result()
        yield Place(kind, bundle.path, port, pid, joined)


def _join(address: str) -> None:
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)


def _ready() -> int:
    (application,) = serve.status().applications.values()
    (deployment,) = application.deployments.values()
    return int(deployment.replica_states.get("RUNNING", 0))


def _threads() -> int:
    return os.cpu_count() or 1


def _killed(place: Place, title: str, until: Callable[[], bool] = lambda: True) -> float:
    """Seconds from a process's death until as many as before are there, and more is so."""
    before = place.processes(title)
    kill(before[0])
    killed_s = time.monotonic()
    while True:
        now = place.processes(title)
        if len(now) >= len(before) and before[0] not in now and until():
            return time.monotonic() - killed_s
        if time.monotonic() - killed_s > PATIENCE_S:
            raise RuntimeError(f"{title} was not replaced in {PATIENCE_S:g} s")
        time.sleep(0.1)
