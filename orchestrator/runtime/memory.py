"""Memory: the peak since the last reset, in a process reused among trials, and what is free."""

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
    return _status_bytes("VmHWM") or _highest_bytes()


def resident_bytes(device: torch.device) -> int:
    """What this process holds now: GPU memory allocated, or on a CPU its resident set."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _status_bytes("VmRSS") or _highest_bytes()


def free_memory_bytes(
    *, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Main memory that this machine, or the container that it is, can still give.

    What the kernel would drop when asked (caches) counts as free. None where nothing tells.
    """
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (proc / "meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        free = int(available.split()[1]) * 1024
        return min(free, _free_in_container(cgroup, free))
    return None


def _free_in_container(cgroup: Path, free: int) -> int:
    """Bytes left of a container's limit (cgroup version 2, then 1); `free` where it has none."""
    for limit, used, caches in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):
            most = int((cgroup / limit).read_text())  # `max`, for no limit, is no number
            stat = (cgroup / used).with_name("memory.stat").read_text().splitlines()
            dropped = sum(int(row.split()[1]) for row in stat if row.split()[0] == caches)
            return max(0, most - int((cgroup / used).read_text()) + dropped)
    return free


def _status_bytes(name: str) -> int:
    """A line of this process's status; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def _highest_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
