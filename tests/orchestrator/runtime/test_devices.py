"""A worker of several trains on the device that Ray gave it, in whatever order it sees them."""

from __future__ import annotations

import pytest
import torch

from orchestrator.runtime import worker_group
from orchestrator.runtime.worker_group import given_device


@pytest.mark.parametrize("name", ["cuda:1", "cuda:0", "cpu"])
def test_the_device_is_rays_and_becomes_the_current_one(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    current: list[torch.device] = []
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(worker_group, "get_device", lambda: torch.device(name))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert given_device(use_gpu=True) == torch.device(name)
    assert current == ([] if name == "cpu" else [torch.device(name)])


def test_a_worker_that_was_given_none_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_group, "get_device", lambda: pytest.fail("asked Ray for a device"))
    assert given_device(use_gpu=False) == torch.device("cpu")
