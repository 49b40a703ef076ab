"""An endpoint on the run's one Ray cluster, and two small real bundles to serve on it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.bundle.clip_bundles import OWN_LABELS, write_clip_bundle
from orchestrator.runtime.cluster import Cluster
from orchestrator.spec.clip_models import parse_clip
from orchestrator.spec.experiment import Experiment
from serve.addresses import Address
from serve.app import AppSettings, run_app, stop_serve
from tests.orchestrator.bundle.small_bundles import image_bundle, text_bundle
from tests.serve.material import network_experiment, record_of


class Site:
    """Where an application is run and run again.

    Attributes:
        port: Of this machine, free when the tests began.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def run(
        self, *endpoints: dict[str, object], patience_s: float = 200, **settings: object
    ) -> None:
        """Serve these; replicas are small enough for two versions at once on four CPUs."""
        raw = {"endpoints": list(endpoints), "cpus": 0.1, **settings}
        run_app(
            AppSettings.model_validate(raw),
            at=Address("127.0.0.1", self.port),
            patience_s=patience_s,
        )


@pytest.fixture(scope="module")
def site(cluster: Cluster) -> Iterator[Site]:
    """Serve on the run's cluster, until the module's tests have ended: others need its CPUs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    yield Site(port)
    stop_serve()


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    return network_experiment()


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory, experiment: Experiment) -> tuple[Path, Path]:
    """Two versions of one image model, whose answers differ by their temperature."""
    root = tmp_path_factory.mktemp("versions")
    first = image_bundle(root / "first", experiment, record_of(experiment))
    second = image_bundle(root / "second", experiment, record_of(experiment), temperature=2.0)
    return first.path, second.path


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory, experiment: Experiment) -> Path:
    """A text model."""
    folder = tmp_path_factory.mktemp("texts") / "texts"
    return text_bundle(folder, experiment, record_of(experiment)).path


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Path:
    """The tiny CLIP."""
    folder = tmp_path_factory.mktemp("shapes") / "shapes"
    clip = parse_clip(str(clip_folder), base=Path("/"))
    return write_clip_bundle(folder, clip, OWN_LABELS).path
