"""The Accelerator of a phase is on the device that the worker was given, and starts afresh."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="names devices that need not exist")
def test_a_worker_keeps_a_device_that_is_not_the_one_of_its_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Device 0 of the node stands second among the visible ones, and is the first worker's.
    told = {"CUDA_VISIBLE_DEVICES": "1,0", "LOCAL_RANK": "0", "ACCELERATE_TORCH_DEVICE": "cuda:0"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    second = Workers(rank=0, world_size=1, device=torch.device("cuda:1"))
    assert build_accelerator(second, "fp32").device == torch.device("cuda:1")


def _on_the_others_device(rank: int, folder: Path) -> None:
    """What each of two processes does: it trains on the device of the other one's rank."""
    device = torch.device("cuda", 1 - rank)
    torch.cuda.set_device(device)
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("nccl", init_method=rendezvous, rank=rank, world_size=2)
    accelerator = build_accelerator(Workers(rank=rank, world_size=2, device=device), "fp32")
    wrapped = distributed(accelerator, torch.nn.Linear(4, 1).to(device))
    wrapped(torch.full((1, 4), float(rank), device=device)).sum().backward()
    (gradient,) = (p.grad for p in wrapped.parameters() if p.ndim == 2)
    assert gradient is not None
    torch.save((gradient.device, gradient.cpu()), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_two_workers_average_gradients_on_shuffled_devices(tmp_path: Path) -> None:
    start_processes(_on_the_others_device, args=(tmp_path,), nprocs=2, start_method="spawn")
    for rank in (0, 1):
        device, gradient = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert device == torch.device("cuda", 1 - rank)
        assert torch.equal(gradient, torch.full((1, 4), 0.5))


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
