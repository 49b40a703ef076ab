"""A durable write leaves the old bytes or the new ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from orchestrator.spec.durable import file_digest, write_durably, write_json


def test_a_file_is_written_whole_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "record.json"

    write_durably(path, b"old")
    write_durably(path, b"new")

    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_a_crash_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    write_durably(path, b"old")
    written = []

    def die(self: Path, target: Path) -> Path:
        written.append((self.name, self.read_bytes(), target))
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_durably(path, b"new")

    assert path.read_bytes() == b"old"
    [(name, content, target)] = written
    assert name.startswith(".record.json.")
    assert name.endswith(".tmp")
    assert (content, target) == (b"new", path), "the new bytes were whole before the rename"


def test_a_rename_that_fails_keeps_what_stood_there(tmp_path: Path) -> None:
    (tmp_path / "taken" / "child").mkdir(parents=True)

    with pytest.raises(OSError, match="taken"):
        write_durably(tmp_path / "taken", b"new")

    assert (tmp_path / "taken" / "child").is_dir()


def test_json_is_readable_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_json(path, {"a": [1, 2.5, None, "é"]})

    assert json.loads(path.read_text()) == {"a": [1, 2.5, None, "é"]}
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"a": value})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None, "é"]}


@pytest.mark.parametrize("n_bytes", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_file_digest_is_sha256_of_its_bytes(tmp_path: Path, n_bytes: int) -> None:
    content = bytes(i % 251 for i in range(n_bytes))
    (tmp_path / "file").write_bytes(content)

    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
