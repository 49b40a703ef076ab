"""Checkpoints at a URI: a trial goes on from them on a node that has seen none of it."""

from __future__ import annotations

from pathlib import Path

import torch

from orchestrator.spec import mirror
from orchestrator.spec.object_store import Stored
from orchestrator.training.checkpoint import (
    folder_name,
    keep_only,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from tests.object_storage import Node


def root_of(uri: str) -> Path:
    return mirror.local_path(uri) / "trials" / "1f2e" / "checkpoints"


def write(uri: str, epoch: int, *, best: int = 1, value: float = 0.0) -> None:
    write_checkpoint(
        root_of(uri),
        epoch,
        weights={"w": torch.tensor(value)},
        optimizer=None,
        schedule=None,
        validation={},
        state={"best_epoch": best},
    )


def test_a_trial_goes_on_where_another_node_left_it(storage_uri: str, become: Node) -> None:
    for epoch in (1, 2, 3):
        write(storage_uri, epoch, value=float(epoch))
    keep_only(root_of(storage_uri), {1, 3})
    become("b")
    found = newest_checkpoint(root_of(storage_uri))
    assert found is not None
    assert found.folder.name == folder_name(3)
    assert float(found.weights["w"]) == 3
    assert read_checkpoint(root_of(storage_uri) / folder_name(2)) is None
    write(storage_uri, 4)
    keep_only(root_of(storage_uri), {1, 4})
    become("a")
    newest = newest_checkpoint(root_of(storage_uri))
    assert newest is not None
    assert newest.folder.name == folder_name(4)
    assert read_checkpoint(root_of(storage_uri) / folder_name(3)) is None


def test_an_epoch_that_was_written_again_is_read_anew(storage_uri: str, become: Node) -> None:
    write(storage_uri, 1, value=1.0)
    become("b")
    write(storage_uri, 1, value=2.0)
    become("a")
    found = read_checkpoint(root_of(storage_uri) / folder_name(1))
    assert found is not None
    assert float(found.weights["w"]) == 2


def test_a_damaged_one_is_passed_over(storage_uri: str, become: Node) -> None:
    for epoch in (1, 2):
        write(storage_uri, epoch)
    epoch_2 = root_of(storage_uri) / folder_name(2)
    Stored(f"{mirror.location_of(epoch_2)}/weights.safetensors").write(b"damaged")
    become("b")
    found = newest_checkpoint(root_of(storage_uri))
    assert found is not None
    assert found.folder.name == folder_name(1)
