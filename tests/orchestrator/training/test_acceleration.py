"""The Accelerator of a phase is on the device that the worker was given, and starts afresh."""

from __future__ import annotations

import os

import pytest
import torch

from orchestrator.training.acceleration import build_accelerator, distributed
from orchestrator.training.workers import Workers

CPU = torch.device("cpu")
ALONE = Workers(rank=0, world_size=1, device=CPU)


def test_the_device_is_the_workers_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What Ray Train leaves behind when visible devices are in another order than ranks.
    told = {"ACCELERATE_TORCH_DEVICE": "cuda:3", "LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    accelerator = build_accelerator(ALONE, "fp32")
    assert accelerator.device == CPU
    assert (accelerator.num_processes, accelerator.process_index) == (1, 0)
    assert {name: os.environ[name] for name in told} == told


def test_one_trial_after_the_other_has_its_own_precision() -> None:
    module = torch.nn.Linear(4, 4)
    seen = []
    for precision in ("bf16", "fp32", "bf16"):
        accelerator = build_accelerator(ALONE, precision)
        with accelerator.autocast():
            seen.append(module(torch.ones(1, 4)).dtype)
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_the_number_of_threads_stays() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    build_accelerator(ALONE, "fp32")
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_one_worker_trains_the_module_itself() -> None:
    module = torch.nn.Linear(4, 4)
    assert distributed(build_accelerator(ALONE, "fp32"), module) is module
