"""Peak memory of what ran since the last reset, in a process that is reused among trials."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Forget earlier peaks: the kernel's high-water mark, and the GPU allocator's."""
    # Where this is not Linux, or not permitted, the peak covers the whole process.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """GPU memory allocated at the peak, or on a CPU the resident set of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(row for row in status.splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
