"""What tests of several layers share: small pictures on disk, and one Ray cluster a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.serving_cluster import PROXY_SETTINGS
from orchestrator.runtime.cluster import Cluster, joined_cluster
from tests.object_storage import CREDENTIALS, Node, new_bucket, node
from tests.orchestrator.clip_material import tiny_clip

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}
BACKBONE = {"name": "mobilenetv3_small_050", "weights": "none"}


def write_tree(root: Path, n: int, *, seed: int) -> Path:
    """`n` noisy pictures of 32 px for each of three colours, one folder a colour."""
    rng = np.random.default_rng(seed)
    for label, colour in COLOURS.items():
        folder = root / label
        folder.mkdir(parents=True)
        for i in range(n):
            noise = rng.normal(0, 40, (32, 32, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `test`, 24 and 8 pictures a class."""
    root = tmp_path_factory.mktemp("colours")
    write_tree(root / "train", 24, seed=0)
    write_tree(root / "test", 8, seed=1)
    return root


@pytest.fixture(scope="session")
def make_spec(colours: Path) -> Callable[..., dict[str, object]]:
    """A small sweep's spec as plain data in some storage, with any key replaced."""

    def make(storage: Path | str, **changes: object) -> dict[str, object]:
        return {
            "name": "colours",
            "task": "image-classification",
            "data": {"train": str(colours / "train"), "test": str(colours / "test")},
            "defaults": {"image_size": 32, "crop_fraction": 1.0, "epochs": 2, "batch_size": 16},
            "search": [
                {
                    "strategy": "feature-extraction",
                    "backbone": BACKBONE,
                    "head_lr": {"log": [1e-3, 1e-2]},
                },
                {
                    "strategy": "partial",
                    "backbone": BACKBONE,
                    "unfreeze": [1, 2],
                    "warm_up_epochs": 1,
                    "augment": "none",
                },
            ],
            "budget": {"trials": 4},
            "objective": {"metric": "accuracy"},
            "storage": str(storage),
            **changes,
        }

    return make


@pytest.fixture
def raw_spec(
    make_spec: Callable[..., dict[str, object]], tmp_path: Path
) -> Callable[..., dict[str, object]]:
    """The same with a storage of the test's own."""
    return partial(make_spec, tmp_path / "runs")


@pytest.fixture(scope="session")
def clip_folder() -> Path:
    """The tiny CLIP that knows coloured shapes; trained by the machine's first test that asks."""
    return tiny_clip()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One local Ray cluster for the whole run, with more logical CPUs than the machine has."""
    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    os.environ.update(PROXY_SETTINGS)  # as `deploy` starts a cluster
    with joined_cluster(cpus=4) as joined:
        yield joined


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an object store with S3's semantics, on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Node:
    """Makes this process one of the node of some name, which has a mirror of its own."""
    return node(monkeypatch, tmp_path)


@pytest.fixture
def storage_uri(s3_server: str, become: Node, monkeypatch: pytest.MonkeyPatch) -> str:
    """A storage at a URI, reached from the node `a`."""
    for name, value in {"AWS_ENDPOINT_URL": s3_server, **CREDENTIALS}.items():
        monkeypatch.setenv(name, value)
    become("a")
    return new_bucket(s3_server)
