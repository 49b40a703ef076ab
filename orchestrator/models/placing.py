"""Where a module computes, and in which memory order."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def one_device(*, use_gpu: bool) -> torch.device:
    """The first GPU that this process sees, if it may use one and there is one; else the CPU."""
    return torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")


def placed(module: M, device: torch.device) -> M:
    """`module` itself, on `device`, its convolutions in channels-last order (faster on both)."""
    module.to(device)
    module.to(memory_format=torch.channels_last)
    return module
