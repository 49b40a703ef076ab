"""Accelerate's part in a phase: precision, gradients over workers, loss scaling, clipping.

One Accelerator serves one phase. What process group and which device it gets has been decided
before: by Ray Train for several workers, by the trial's actor for one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from orchestrator.training.precision import Precision
from orchestrator.training.workers import Workers

_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def build_accelerator(
    workers: Workers, precision: Precision, *, some_unused: bool = False
) -> Accelerator:
    """A new Accelerator on the device that this worker was given.

    Accelerate counts devices by the worker's rank on its node, and by environment variables. Both
    are told here: visible devices may be in any order, and an actor that trains one trial after
    the other must not go on with the state of the last.

    Args:
        workers: The trial's; their process group exists already.
        precision: What forward passes compute in.
        some_unused: Whether a forward pass may leave out some of its trainable parameters.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    unused = DistributedDataParallelKwargs(
        broadcast_buffers=False, find_unused_parameters=some_unused
    )
    with _environment(_told(workers)):
        accelerator = Accelerator(
            mixed_precision=_PRECISIONS[precision],
            cpu=workers.device.type == "cpu",
            kwargs_handlers=[unused],
            step_scheduler_with_optimizer=False,
        )
    assert accelerator.device == workers.device, f"{accelerator.device} is not {workers.device}"
    assert accelerator.num_processes == workers.world_size
    return accelerator


def distributed(accelerator: Accelerator, module: torch.nn.Module) -> torch.nn.Module:
    """`module` under the accelerator's precision, its gradients averaged over the workers."""
    # Else it takes the rank on the node for the device's number.
    with _environment({"ACCELERATE_BYPASS_DEVICE_MAP": "true"}):
        wrapped: torch.nn.Module = accelerator.prepare_model(module, device_placement=False)
    return wrapped


def _told(workers: Workers) -> dict[str, str | None]:
    """The environment variables by which Accelerate finds workers and device."""
    told: dict[str, str | None] = {
        "ACCELERATE_TORCH_DEVICE": str(workers.device),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # else it sets a number of its own
    }
    where = dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"))
    if workers.world_size > 1:
        rank, size = str(workers.rank), str(workers.world_size)
        where |= {"RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": "0"}  # the group exists
        where |= {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        where |= {name: os.environ[name] for name in where if name in os.environ}
    return told | where


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Meanwhile these environment variables have these values; None for not set."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
