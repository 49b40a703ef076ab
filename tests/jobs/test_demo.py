"""The end of the demo: an endpoint that is asked as a user would, and then ended."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from jobs import demo
from jobs.serving_cluster import earlier_endpoint
from orchestrator.bundle.registry import Registry
from tests.orchestrator.bundle.small_bundles import image_bundle
from tests.serve.material import image_file, network_experiment, record_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture
def registry(tmp_path: Path) -> str:
    """One small model, registered as the demo does with its own."""
    experiment = network_experiment()
    bundle = image_bundle(tmp_path / "bundle", experiment, record_of(experiment))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    Registry(uri, cache=tmp_path / "own").register(bundle, name=demo.NAME, alias="champion")
    return uri


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_demo_serves_asks_and_stops(
    tmp_path: Path,
    registry: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    cells = [tmp_path / "a.png", tmp_path / "b.png"]
    for cell, colour in zip(cells, ((250, 10, 10), (5, 5, 240)), strict=True):
        cell.write_bytes(image_file(colour))

    kept = demo._serve(cells, registry=registry, keep=True)
    found = re.fullmatch(r"(http://127\.0\.0\.1:(\d+))/ \(stop it with: (.*)\)", kept)
    assert found is not None, kept
    assert found[3] == f"orchestrator undeploy --port {found[2]}"
    assert httpx.get(f"{found[1]}/readyz", timeout=30).status_code == 200
    out = capfd.readouterr().out
    assert f"A page to try it on: {found[1]}/" in out
    assert '"answers":[{"label":' in out  # by curl
    assert re.search(r"a\.png: \w+, by version 1", out)

    demo._run("undeploy", "--port", found[2])
    assert demo._serve(cells, registry=registry, keep=False).startswith("stopped")
    assert earlier_endpoint(int(found[2])) is None
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{found[1]}/readyz", timeout=5)
