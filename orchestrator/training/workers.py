"""Several workers as one: sums, gathers and decisions over ranks. With one worker, nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn


class Workers:
    """The process group of one trial, which somebody else has set up."""

    def __init__(self, *, rank: int, world_size: int, device: torch.device) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device

    def total(self, values: Tensor) -> Tensor:
        """Elementwise sum over workers."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def average_buffers(self, module: nn.Module) -> None:
        """Give every worker the mean of all floating-point buffers (BatchNorm statistics)."""
        if self.world_size == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(self.world_size)

    def share(self, n: int) -> npt.NDArray[np.int64]:
        """This worker's positions among n."""
        return np.arange(self.rank, n, self.world_size)

    def gather(self, local: Tensor, n: int) -> Tensor:
        """All workers' rows in their original order.

        Args:
            local: float [len(share(n)), C] of this worker.
            n: Rows over all workers.

        Returns:
            float [n, C] on the CPU, the same on every worker.
        """
        if self.world_size == 1:
            return local.cpu()
        most = -(-n // self.world_size)
        padded = torch.zeros((most, local.shape[1]), dtype=local.dtype, device=self.device)
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).reshape(-1, local.shape[1])[:n].cpu()

    def agree(self, flag: bool) -> bool:
        """Rank 0's flag, on every worker."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([int(flag and self.rank == 0)], device=self.device)
        dist.all_reduce(value)
        return bool(value.item())

    def barrier(self) -> None:
        """Wait for all workers."""
        self.agree(False)
