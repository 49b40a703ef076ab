"""An adapted backbone at a URI: named by it in experiments, fetched whole by whoever reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import IntegrityError
from orchestrator.runtime.pretrained import WEIGHTS, PretrainedFolder
from orchestrator.spec import mirror
from orchestrator.spec.object_store import Stored
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.pretrained import PROVENANCE, pretrained_file, pretrained_folder
from tests.object_storage import Node

DIGEST = "d" * 64
PARENT = BackboneSpec(name="mobilenetv3_small_050")


def folder_at(uri: str) -> PretrainedFolder:
    return PretrainedFolder(mirror.local_path(uri), DIGEST)


def fill(new: Path) -> None:
    (new / WEIGHTS).write_bytes(b"weights")


def publish(uri: str) -> PretrainedFolder:
    folder = folder_at(uri)
    (folder.checkpoints / "epoch-0001").mkdir(parents=True)
    folder.publish(fill, {"seconds": 1})
    return folder


def test_every_node_reads_what_one_has_published(storage_uri: str, become: Node) -> None:
    assert folder_at(storage_uri).provenance() is None
    assert not publish(storage_uri).checkpoints.exists()
    become("b")
    assert (folder_at(storage_uri).provenance() or {})["seconds"] == 1
    adapted = folder_at(storage_uri).adapted(PARENT)
    assert adapted.weights == f"{storage_uri}/pretrained/{DIGEST[:16]}/{WEIGHTS}"
    become("c")
    assert pretrained_file(adapted.weights).read_bytes() == b"weights"
    assert {path.name for path in pretrained_file(adapted.weights).parent.iterdir()} == {
        WEIGHTS,
        PROVENANCE,
    }


def test_a_file_of_this_machine_is_its_own_place(tmp_path: Path) -> None:
    assert pretrained_file(str(tmp_path / "a.safetensors")) == tmp_path / "a.safetensors"
    assert pretrained_folder(str(tmp_path)) == tmp_path


def test_a_damaged_object_is_refused(storage_uri: str, become: Node) -> None:
    folder = publish(storage_uri)
    Stored(f"{mirror.location_of(folder.root)}/{WEIGHTS}").write(b"damaged")
    become("b")
    with pytest.raises(IntegrityError, match=f"{storage_uri}/pretrained/.*{WEIGHTS}"):
        folder_at(storage_uri).provenance()


def test_two_machines_share_a_pretraining(storage_uri: str, become: Node) -> None:
    with folder_at(storage_uri).locked(waiting=lambda: pytest.fail("nobody has it")):
        assert Stored(f"{storage_uri}/pretrained/.{DIGEST[:16]}").names() == {"owner.json"}
        folder_at(storage_uri).clear_work()
    assert Stored(f"{storage_uri}/pretrained").names() == set()
