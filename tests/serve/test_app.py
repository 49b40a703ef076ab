"""What the application makes of its settings, before any of it runs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.bundle.latency import LatencyCurve, LatencyPoint, target_ongoing_requests
from orchestrator.bundle.registry import Registry
from serve import app
from serve.app import AppSettings, pinned_settings
from serve.loading import Model
from serve.pinning import pinned
from serve.replica import PROBED_AT_ONCE, Ingress
from serve.split import SplitEndpoint
from tests.serve.material import COLOURS, plain_bundle

CURVE = LatencyCurve(
    cpu="one",
    cores=4,
    runtime="onnx",
    points=(
        LatencyPoint(threads=1, batch=1, p50_ms=40, p95_ms=50),
        LatencyPoint(threads=4, batch=1, p50_ms=10, p95_ms=12),
    ),
)


def of(folder: Path, **changes: Any) -> AppSettings:
    return AppSettings.model_validate(
        {"endpoints": [{"name": "cells", "bundle": str(folder)}], **changes}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return plain_bundle(tmp_path / "stored", kind="image-classification", labels=COLOURS).path


def test_a_fixed_number_of_replicas_does_not_follow_the_load() -> None:
    assert app._scale(2, 2, target=5) == {"num_replicas": 2}


def test_replicas_follow_the_requests_in_flight_below_rays_own_limit() -> None:
    found = app._scale(0, 3, target=7)["autoscaling_config"]
    assert (found.min_replicas, found.max_replicas, found.target_ongoing_requests) == (0, 3, 7)
    most = app._scale(1, 3, target=10**6)["autoscaling_config"].target_ongoing_requests
    assert most < app._CONNECTIONS


def test_without_a_latency_curve_every_thread_is_busy_and_as_much_again_waits(folder: Path) -> None:
    model = Model(pinned(str(folder), name="cells", registry=None))
    assert app._target(model, of(folder), 3) == 6


@pytest.mark.parametrize("threads", [1, 4])
def test_with_one_a_replica_holds_what_it_answers_in_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    measured = SimpleNamespace(manifest=SimpleNamespace(latency=CURVE))
    monkeypatch.setattr(app, "fetched", lambda pin: measured)
    model = Model(pinned(str(folder), name="cells", registry=None))
    settings = of(folder, threads=threads, within_ms=100)
    one = target_ongoing_requests(CURVE, threads=threads, within_ms=100)
    assert app._target(model, settings, 2) == 2 * one
    assert one == {1: 2, 4: 8}[threads]
    together = target_ongoing_requests(CURVE, threads=threads, within_ms=100, batched=True)
    assert app._target(replace(model, batch_rows=8), settings, 8) == together
    assert app._target(replace(model, device="cuda"), settings, 8) == 16  # the curve is of a CPU


def test_pinned_settings_mean_the_same_in_every_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names = Registry("sqlite:///mlflow.db", cache=tmp_path / "cache")
    names.register(app.fetched(pinned(str(folder), name="c", registry=None)), name="cells")
    one = {"name": "cells", "bundle": "cells", "registry": "sqlite:///mlflow.db"}
    other = {"name": "other", "bundle": "./stored", "registry": "mlruns"}
    found = pinned_settings(AppSettings.model_validate({"endpoints": [one, other]}))
    assert found.endpoints[0].bundle == "cells/1"
    assert found.endpoints[0].registry == f"sqlite:///{tmp_path}/mlflow.db"
    assert (found.endpoints[1].bundle, found.endpoints[1].registry) == (str(folder), None)


class Probed:
    """An endpoint that is well or not."""

    def __init__(self, *, well: bool) -> None:
        self.well = well
        self.well_at_s = 0.0
        self.n_probed = 0

    async def probe(self) -> None:
        self.n_probed += 1
        if not self.well:
            raise RuntimeError("out of memory")
        self.well_at_s = time.monotonic()


class Told:
    """Takes what a replica tells."""

    def __init__(self) -> None:
        self.endpoints: list[Any] = []

    async def tell(self, endpoints: Any) -> None:
        self.endpoints += endpoints


@pytest.mark.parametrize(
    ("trusted", "candidate", "healthy"),
    [(True, None, True), (False, None, False), (True, False, True), (False, True, False)],
)
def test_a_replica_is_healthy_while_what_is_trusted_answers(
    monkeypatch: pytest.MonkeyPatch, trusted: bool, candidate: bool | None, healthy: bool
) -> None:
    endpoint: Any = Probed(well=trusted)
    if candidate is not None:
        endpoint = SplitEndpoint(endpoint, Probed(well=candidate), 0.1, None)  # type: ignore[arg-type]
    monkeypatch.setattr("serve.replica.LocalEndpoint", Probed)
    told = Told()
    ingress: Any = SimpleNamespace(_endpoints=(endpoint,), _teller=told)
    if healthy:
        asyncio.run(Ingress.check_health(ingress))
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            asyncio.run(Ingress.check_health(ingress))
    assert len(told.endpoints) == (1 if candidate is None else 2)


def test_of_many_models_each_is_probed_in_its_turn_and_an_ill_one_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve.replica.LocalEndpoint", Probed)
    models = [Probed(well=True) for _ in range(3 * PROBED_AT_ONCE)]
    ingress: Any = SimpleNamespace(_endpoints=models, _teller=Told())
    for n in (1, 2, 3):
        asyncio.run(Ingress.check_health(ingress))
        assert sum(one.n_probed for one in models) == n * PROBED_AT_ONCE
    assert [one.n_probed for one in models] == [1] * len(models)
    models[-1].well = False
    for _ in range(2):
        asyncio.run(Ingress.check_health(ingress))  # it is not its turn yet
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            asyncio.run(Ingress.check_health(ingress))


@pytest.mark.parametrize(
    ("kinds", "told"),
    [(["ProxyActor"], False), (["ProxyActor", "HAProxyManager"], True), ([], False)],
)
def test_haproxy_is_found_among_the_proxies(
    monkeypatch: pytest.MonkeyPatch, kinds: list[str], told: bool
) -> None:
    proxies = {
        str(i): SimpleNamespace(
            _ray_actor_creation_function_descriptor=SimpleNamespace(class_name=kind)
        )
        for i, kind in enumerate(kinds)
    }
    remote = SimpleNamespace(get_proxies=SimpleNamespace(remote=lambda: proxies))
    monkeypatch.setattr(app, "_get_global_client", lambda: SimpleNamespace(_controller=remote))
    monkeypatch.setattr(app.ray, "get", lambda value: value)
    assert app._binds_every_interface() is told
