from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.mlflow_server import shown_uri
from orchestrator.bundle.registry import Registry
from orchestrator.errors import IntegrityError, RegistryError

# MLflow 3.17 with SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

REGISTER = """
import sys
from pathlib import Path
from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.registry import Registry
uri, cache, name, alias, *folders = sys.argv[1:]
registry = Registry(uri, cache=Path(cache))
print("ready", flush=True)
sys.stdin.readline()
for folder in folders:
    print(registry.register(open_bundle(folder), name=name, alias=alias or None).version)
"""


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow creates it, once: its 60 migrations take seconds."""
    folder = tmp_path_factory.mktemp("empty")
    assert Registry(f"sqlite:///{folder}/mlflow.db", cache=folder / "cache").names() == []
    return folder / "mlflow.db"


@pytest.fixture
def registry(empty_database: Path, tmp_path: Path) -> Registry:
    (tmp_path / "shared").mkdir()
    shutil.copy(empty_database, tmp_path / "shared/mlflow.db")
    return Registry(f"sqlite:///{tmp_path}/shared/mlflow.db", cache=tmp_path / "cache")


def artifacts(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "shared/mlartifacts").glob("*/artifacts/bundle"))


def test_what_was_registered_is_what_is_resolved(registry: Registry, plain: Bundle) -> None:
    version = registry.register(plain, name="cells", alias="champion", tags={"note": "first"})
    assert (version.name, version.version, version.alias) == ("cells", 1, "champion")
    assert version.digest == plain.digest
    for reference in ("cells", "cells@champion", "cells/1"):
        folder = registry.resolve(reference)
        assert folder != plain.path
        assert open_bundle(folder).manifest == plain.manifest
    assert registry.names() == ["cells"]
    assert [str(v) for v in registry.versions("cells")] == ["cells/1"]


def test_the_same_bundle_is_one_version_and_its_alias_moves(
    registry: Registry, plain: Bundle, write_plain, tmp_path: Path
) -> None:
    other = write_plain(tmp_path / "other", weights=b"other")
    registry.register(plain, name="cells", alias="champion")
    second = registry.register(other, name="cells", alias="champion")
    assert second.version == 2
    assert registry.find("cells").version == 2
    again = registry.register(plain, name="cells", alias="champion")
    assert (again.version, again.aliases) == (1, ("champion",))
    assert len(registry.versions("cells")) == 2
    assert len(artifacts(tmp_path)) == 2
    assert registry.find("cells@champion").version == 1
    assert registry.find("cells").version == 1


def test_who_had_an_alias_before_is_kept_and_forgotten_when_it_comes_back(
    registry: Registry, write_plain, tmp_path: Path
) -> None:
    for number in (1, 2, 3, 4):
        bundle = write_plain(tmp_path / str(number), weights=bytes([number]))
        alias = "challenger" if number == 2 else "champion"
        assert registry.register(bundle, name="cells", alias=alias).version == number
        registry.register(bundle, name="cells", alias=alias)  # again: it has it already
    assert registry.holder_before("cells", "champion") == 3
    registry.move_alias("cells", "champion", 3)
    assert registry.holder_before("cells", "champion") == 1
    registry.move_alias("cells", "champion", 1)
    for alias in ("champion", "challenger"):
        with pytest.raises(RegistryError, match=r"1, 2, 3, 4 with --to"):
            registry.holder_before("cells", alias)
    registry.move_alias("cells", "champion", 2)
    assert registry.holder_before("cells", "champion") == 1


def test_a_version_that_is_gone_had_no_alias(
    registry: Registry, plain: Bundle, write_plain, tmp_path: Path
) -> None:
    registry.register(plain, name="cells", alias="champion")
    for number in (2, 3):
        bundle = write_plain(tmp_path / str(number), weights=bytes([number]))
        registry.register(bundle, name="cells", alias="champion")
    registry._client.delete_model_version("cells", "2")
    assert registry.holder_before("cells", "champion") == 1


def test_a_bare_name_without_a_champion_is_its_newest_version(
    registry: Registry, plain: Bundle, write_plain, tmp_path: Path
) -> None:
    registry.register(plain, name="cells", alias="baseline")
    assert registry.find("cells").version == 1
    registry.register(write_plain(tmp_path / "other", weights=b"other"), name="cells")
    assert registry.find("cells").version == 2
    assert registry.find("cells").alias is None
    assert registry.find("cells@baseline").alias == "baseline"


def test_two_names_may_have_the_same_bundle(registry: Registry, plain: Bundle) -> None:
    assert registry.register(plain, name="a").version == 1
    assert registry.register(plain, name="b").version == 1
    assert registry.resolve("a") == registry.resolve("b")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("cels", r"'cels' is not in the registry .*It has cells\. Did you mean 'cells'"),
        ("cells/7", r"cells/7: no such version\. 'cells' has versions 1"),
        ("cells@champoin", r"no such alias, only champion .*Did you mean 'champion'"),
        ("../cells", r"'\.\.' does not match \^\[a-z0-9\]"),
        ("Cells", "'Cells' does not match"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    registry: Registry, plain: Bundle, reference: str, message: str
) -> None:
    registry.register(plain, name="cells", alias="champion")
    with pytest.raises(RegistryError, match=message):
        registry.resolve(reference)


def test_an_empty_registry_says_so(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="It is empty"):
        registry.resolve("cells")


@pytest.mark.parametrize("name", ["Cells", "../x", "a b", "a" * 65, ""])
def test_a_name_that_is_not_allowed_is_refused_before_anything_is_written(
    registry: Registry, plain: Bundle, tmp_path: Path, name: str
) -> None:
    for arguments in ({"name": name}, {"name": "ok", "alias": name}):
        with pytest.raises(RegistryError, match="does not match"):
            registry.register(plain, **arguments)
    assert artifacts(tmp_path) == []


def truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"w" * 999)


def add_pickle(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(b"\x80\x04K\x01.")


def remove_manifest(folder: Path) -> None:
    (folder / "bundle.json").unlink()


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("tamper", [truncate, add_pickle, remove_manifest])
def test_tampered_artifacts_are_refused_and_not_kept(
    registry: Registry, plain: Bundle, tmp_path: Path, tamper: Callable[[Path], None]
) -> None:
    registry.register(plain, name="cells")
    tamper(artifacts(tmp_path)[0])
    with pytest.raises(IntegrityError, match="cells/1 in sqlite"):
        registry.resolve("cells")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_whole_other_bundle_in_its_place_is_refused(
    registry: Registry, plain: Bundle, write_plain, tmp_path: Path
) -> None:
    other = write_plain(tmp_path / "other", weights=b"evil")
    registry.register(plain, name="cells")
    shutil.copytree(other.path, artifacts(tmp_path)[0], dirs_exist_ok=True)
    with pytest.raises(IntegrityError, match=other.digest[:12]):
        registry.resolve("cells")


def test_lost_artifacts_are_an_error_of_the_registry(
    registry: Registry, plain: Bundle, tmp_path: Path
) -> None:
    registry.register(plain, name="cells")
    remove_all(artifacts(tmp_path)[0])
    with pytest.raises((RegistryError, IntegrityError), match="sqlite"):
        registry.resolve("cells")


def test_a_bundle_that_changed_since_it_was_opened_is_not_registered(
    registry: Registry, plain: Bundle, tmp_path: Path
) -> None:
    truncate(plain.path)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        registry.register(plain, name="cells")
    assert artifacts(tmp_path) == []


def test_a_version_that_is_no_bundle_is_passed_over(registry: Registry, plain: Bundle) -> None:
    registry._client.create_registered_model("cells")
    registry._client.create_model_version("cells", "file:///elsewhere")
    with pytest.raises(RegistryError, match="no such bundle"):
        registry.resolve("cells")
    assert registry.register(plain, name="cells").version == 2
    assert registry.find("cells").version == 2


def test_two_processes_registering_at_once_share_one_new_registry(
    plain: Bundle, write_plain, tmp_path: Path
) -> None:
    """They also race to create the database and to register one bundle, and print only answers."""
    uri, cache = f"sqlite:///{tmp_path}/shared/mlflow.db", tmp_path / "cache"
    own = [write_plain(tmp_path / f"own{i}", weights=bytes([i])) for i in range(2)]
    command = [sys.executable, "-c", REGISTER, uri, str(cache), "cells", "champion"]
    processes = [
        subprocess.Popen(
            [*command, str(plain.path), str(bundle.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for bundle in own
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [stderr for _, stderr in outputs] == ["", ""]
    numbers = [[int(line) for line in stdout.splitlines()] for stdout, _ in outputs]
    shared = numbers[0][0]
    assert numbers[1][0] == shared
    registry = Registry(uri, cache=cache)
    versions = registry.versions("cells")
    assert [v.version for v in versions] == [1, 2, 3]
    assert {v.digest for v in versions} == {plain.digest, *(b.digest for b in own)}
    assert registry.find("cells@champion").version in {numbers[0][1], numbers[1][1]}
    for version in versions:
        assert open_bundle(registry.resolve(str(version))).digest == version.digest
    assert not (tmp_path / "mlruns").exists()


def test_registering_the_same_bundle_on_a_server_at_once_keeps_the_oldest(
    registry: Registry, plain: Bundle
) -> None:
    """A server has no lock of ours: both uploads happen, and the newer one is withdrawn."""
    first = registry.register(plain, name="cells")
    late = registry._upload(plain, "cells", {})
    assert late == first
    assert [v.version for v in registry.versions("cells")] == [1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server that keeps the artifacts itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    files = ["--artifacts-destination", str(tmp_path / "server-artifacts")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, *stores, *files],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", timeout_s=60)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def wait_for(url: str, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.2)


@pytest.mark.slow
def test_a_server_does_what_a_file_does_and_nothing_is_printed(
    server: str, plain: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(server, cache=tmp_path / "cache")
    assert registry.register(plain, name="cells", alias="champion").version == 1
    assert registry.register(plain, name="cells", alias="baseline").version == 1
    assert registry._upload(plain, "cells", {}).version == 1
    assert [v.aliases for v in registry.versions("cells")] == [("baseline", "champion")]
    folder = registry.resolve("cells@baseline")
    assert open_bundle(folder).manifest == plain.manifest
    for bundle in (tmp_path / "server-artifacts").rglob("artifacts/bundle"):
        truncate(bundle)
    shutil.rmtree(folder)
    with pytest.raises(IntegrityError, match="cells/1 in http"):
        registry.resolve("cells")
    with pytest.raises(RegistryError, match="Did you mean 'cells'"):
        registry.resolve("cels")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_server_that_is_not_there_is_an_error_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"registry http://127\.0\.0\.1:9: ") as caught:
        Registry("http://user:secret@127.0.0.1:9/", cache=tmp_path).names()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "file:///tmp/mlruns",
        "sqlite:///",
        "sqlite:///:memory:",
        "postgresql://user:secret@host/db",
        "http://",
    ],
)
def test_an_address_of_another_kind_is_refused_without_its_password(
    tmp_path: Path, uri: str
) -> None:
    with pytest.raises(RegistryError, match="registry") as caught:
        Registry(uri, cache=tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("/srv/mlruns", "/srv/mlruns"),
        ("http://[::1]:5000/", "http://[::1]:5000/"),
        ("https://ann:a%40b@host:5000/x?y=z", "https://host:5000/x?y=z"),
        ("https://a:b@c@host", "https://host"),
    ],
)
def test_an_address_is_shown_as_it_is_but_for_its_password(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown


def test_a_file_that_is_no_database_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"something else entirely")
    with pytest.raises(RegistryError, match="not a SQLite database"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db", cache=tmp_path / "cache").names()
