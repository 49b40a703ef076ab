"""A node's mirror holds what its URI has: fetched once, whole or not at all, sent before named."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import IntegrityError, StorageError
from orchestrator.spec import mirror
from orchestrator.spec.durable import file_digest, write_durably, write_json
from orchestrator.spec.object_store import Stored
from tests.object_storage import Node

LAST = "manifest.json"


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    """A local folder of files and a manifest that has their digests."""
    root.mkdir(parents=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    digests = {name: file_digest(root / name) for name in files}
    (root / LAST).write_text(json.dumps(digests))
    return root


def test_a_folder_that_nodes_mount_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stored, "driver", property(lambda self: pytest.fail("a driver was asked")))
    folder = mirror.open_storage(str(tmp_path / "runs"))
    assert folder == tmp_path / "runs"
    assert mirror.location_of(folder) == str(folder)
    write_json(folder / "a.json", {})
    mirror.refresh(folder / "a.json")
    mirror.refresh_tree(folder, wanted=lambda _: True)
    assert mirror.fetch(folder / "a.json").exists()
    assert mirror.fetch_folder(folder, last=LAST) == folder
    assert mirror.names(folder) == {"a.json"}
    assert not mirror.fetch_files(folder, {"b.json": "0"}), "there is nowhere to fetch it from"


def test_a_path_and_its_uri_name_each_other_on_every_node(become: Node) -> None:
    uri = "s3://bucket/runs/solar-1f2e/sweep.json"
    become("a")
    here = mirror.local_path(uri)
    become("b")
    there = mirror.local_path(uri)
    assert here != there
    assert mirror.location_of(there) == uri


@pytest.mark.parametrize("name", [".lock", ".sweep.json.1f.tmp", ".epoch-1.partial/weights"])
def test_what_is_the_nodes_own_has_no_uri(become: Node, name: str) -> None:
    become("a")
    assert mirror.at_uri(mirror.local_path("s3://bucket/runs") / name) is None


def test_what_one_node_writes_another_fetches(storage_uri: str, become: Node) -> None:
    write_json(mirror.open_storage(storage_uri) / "x" / "a.json", {"a": 1})
    become("b")
    folder = mirror.local_path(storage_uri) / "x"
    assert json.loads(mirror.fetch(folder / "a.json").read_bytes()) == {"a": 1}
    assert not mirror.fetch(folder / "b.json").exists()
    assert mirror.names(folder) == {"a.json"}
    assert mirror.names(folder / "none") == set()


def test_a_file_that_cannot_be_sent_is_not_there_either(
    storage_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mirror.local_path(storage_uri) / "record.json"
    write_durably(path, b"old")

    def fail(self: Stored, source: Path, *, first_wins: bool = False) -> bool:
        raise StorageError("no answer")

    monkeypatch.setattr(Stored, "send", fail)
    with pytest.raises(StorageError):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_many_processes_of_a_node_fetch_a_file_once(
    storage_uri: str, become: Node, caplog: pytest.LogCaptureFixture
) -> None:
    write_durably(mirror.local_path(storage_uri) / "part-0.arrow", bytes(3 << 20))
    become("b")
    code = (
        "import sys\n"
        "from orchestrator.spec import mirror\n"
        f"path = mirror.local_path({storage_uri!r}) / 'part-0.arrow'\n"
        "sys.stdin.read()\n"  # until all are ready
        "assert mirror.fetch(path).stat().st_size == 3 << 20\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with caplog.at_level(logging.INFO, logger="werkzeug"):
        running = [
            subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env=environment)
            for _ in range(4)
        ]
        for process in running:
            assert process.stdin is not None
            process.stdin.close()
        assert [process.wait(timeout=60) for process in running] == [0] * 4
    downloads = [line for line in caplog.messages if "GET" in line and "part-0.arrow" in line]
    assert len(downloads) == 1


def test_what_arrives_damaged_is_fetched_again_and_then_refused(
    storage_uri: str, become: Node, tmp_path: Path
) -> None:
    path = mirror.local_path(storage_uri) / "part.arrow"
    write_durably(path, b"right")
    digest = file_digest(path)
    path.write_bytes(b"wrong")
    assert mirror.fetch(path, sha256=digest).read_bytes() == b"right"
    Stored(f"{storage_uri}/part.arrow").write(b"wrong")
    become("b")
    path = mirror.local_path(storage_uri) / "part.arrow"
    with pytest.raises(IntegrityError, match=f"{storage_uri}/part.arrow"):
        mirror.fetch(path, sha256=digest)
    assert not path.exists()
    assert not mirror.fetch_files(path.parent, {path.name: digest})


def test_the_first_of_two_writers_wins(storage_uri: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    path = mirror.local_path(storage_uri) / "part.arrow"
    assert mirror.put(first, path, first_wins=True)
    assert not mirror.put(second, path, first_wins=True)
    assert mirror.fetch(path).read_bytes() == b"1"


@pytest.mark.parametrize("sent", [0, 1, 2])
def test_a_folder_whose_sending_was_cut_off_is_not_there(
    storage_uri: str, become: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    folder = mirror.local_path(storage_uri) / "epoch-0001"
    old = write_folder(tmp_path / "old", {"a": b"1", "b": b"2"})
    new = write_folder(tmp_path / "new", {"a": b"3", "b": b"4"})
    mirror.put_folder(old, folder, last=LAST)
    send, files = Stored.send, []

    def killed(self: Stored, source: Path, *, first_wins: bool = False) -> bool:
        if len(files) == sent:
            raise KeyboardInterrupt
        files.append(source.name)
        return send(self, source, first_wins=first_wins)

    monkeypatch.setattr(Stored, "send", killed)
    with pytest.raises(KeyboardInterrupt):
        mirror.put_folder(new, folder, last=LAST)
    assert LAST not in files
    become("b")
    folder = mirror.local_path(storage_uri) / "epoch-0001"
    assert not mirror.refresh_folder(folder, last=LAST, digests=dict).exists()
    assert not mirror.fetch_folder(folder, last=LAST).exists()


def test_a_folder_is_what_its_last_file_names_now(
    storage_uri: str, become: Node, tmp_path: Path
) -> None:
    old = write_folder(tmp_path / "old", {"a": b"1", "b": b"2"})
    new = write_folder(tmp_path / "new", {"a": b"3"})
    folder = mirror.local_path(storage_uri) / "epoch-0001"
    mirror.put_folder(old, folder, last=LAST)
    mirror.refresh_folder(folder, last=LAST, digests=dict)
    assert (folder / "b").read_bytes() == b"2"
    become("b")
    mirror.put_folder(new, mirror.local_path(storage_uri) / "epoch-0001", last=LAST)
    become("a")
    mirror.refresh_folder(folder, last=LAST, digests=dict)
    assert {path.name for path in folder.iterdir()} == {"a", LAST}
    assert (folder / "a").read_bytes() == b"3"
    mirror.remove_folder(folder)
    assert mirror.names(folder) == set()


def test_a_folder_written_once_is_sent_and_fetched_by_what_is_lacking(
    storage_uri: str, become: Node
) -> None:
    folder = write_folder(mirror.local_path(storage_uri) / "data", {"blobs.arrow": b"1"})
    (folder / "tokens.arrow.1f.partial").write_bytes(b"half")
    mirror.publish_folder(folder, last=LAST)
    assert mirror.names(folder) == {"blobs.arrow", LAST}
    become("b")
    there = mirror.fetch_folder(mirror.local_path(storage_uri) / "data", last=LAST, digests=dict)
    assert {path.name for path in there.iterdir()} == {"blobs.arrow", LAST}
    become("a")
    (folder / "tokens.arrow").write_bytes(b"2")
    mirror.publish_folder(folder, last=LAST)
    become("b")
    assert mirror.fetch_folder(there, last=LAST) == there
    assert (there / "tokens.arrow").read_bytes() == b"2"


def test_a_tree_is_what_the_uri_has_now(storage_uri: str, become: Node) -> None:
    for name in ("sweep.json", "trials/1/record.json", "trials/1/weights", "trials/2/record.json"):
        write_durably(mirror.local_path(storage_uri) / name, b"old")
    become("b")
    root = mirror.local_path(storage_uri)
    write_durably(root / "sweep.json", b"new")
    mirror.remove_folder(root / "trials/2")
    become("a")
    root = mirror.local_path(storage_uri)
    (root / ".lock").touch()
    (root / "trials/1/weights").unlink()
    mirror.refresh_tree(root, wanted=lambda name: name.endswith(".json"))
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert files == {".lock": b"", "sweep.json": b"new", "trials/1/record.json": b"old"}
