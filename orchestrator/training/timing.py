"""What a step of some work takes, from a few of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def median_seconds(action: Callable[[], object], device: torch.device, *, times: int) -> float:
    """The median wall time of an action that is done `times` times.

    Args:
        action: What is timed.
        device: Where it computes; a GPU's work is waited for.
        times: An odd number, so that a slow first time does not count.
    """
    taken = []
    for _ in range(times):
        started_s = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started_s)
    return sorted(taken)[len(taken) // 2]
