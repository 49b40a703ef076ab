"""Free memory is what the machine can give, or the container that it is."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from orchestrator.runtime.memory import (
    free_memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
    resident_bytes,
)

CPU = torch.device("cpu")
KIB = 1024


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 8,000 KiB available."""
    (tmp_path / "meminfo").write_text("MemTotal: 16000 kB\nMemAvailable:   8000 kB\n")
    return tmp_path


def version_2(folder: Path, limit: str) -> Path:
    folder.mkdir()
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{3000 * KIB}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {1000 * KIB}\n")
    return folder


def version_1(folder: Path, limit: int) -> Path:
    memory = folder / "memory"
    memory.mkdir(parents=True)
    (memory / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (memory / "memory.usage_in_bytes").write_text(f"{3000 * KIB}\n")
    (memory / "memory.stat").write_text(f"total_inactive_file {1000 * KIB}\n")
    return folder


def test_a_machine_without_limits_gives_what_is_available(proc: Path, tmp_path: Path) -> None:
    assert free_memory_bytes(proc=proc, cgroup=tmp_path / "none") == 8000 * KIB
    unlimited = version_2(tmp_path / "v2", "max")
    assert free_memory_bytes(proc=proc, cgroup=unlimited) == 8000 * KIB


def test_a_container_gives_what_is_left_of_its_limit_and_its_caches(
    proc: Path, tmp_path: Path
) -> None:
    for folder in (
        version_2(tmp_path / "v2", str(5000 * KIB)),
        version_1(tmp_path / "v1", 5000 * KIB),
    ):
        assert free_memory_bytes(proc=proc, cgroup=folder) == (5000 - 3000 + 1000) * KIB


def test_a_limit_above_what_the_machine_has_is_none(proc: Path, tmp_path: Path) -> None:
    assert free_memory_bytes(proc=proc, cgroup=version_1(tmp_path / "v1", 2**63)) == 8000 * KIB


def test_where_nothing_tells_nothing_is_claimed(tmp_path: Path) -> None:
    assert free_memory_bytes(proc=tmp_path / "none") is None


def test_what_a_process_holds_grows_with_what_it_takes() -> None:
    n_bytes = 2**26
    before = resident_bytes(CPU)
    # Pages from the kernel: an allocator may hand out those that an earlier test gave back to it.
    with mmap.mmap(-1, n_bytes) as held:
        held.write(b"1" * n_bytes)
        assert resident_bytes(CPU) - before > n_bytes / 2
        reset_peak_memory(CPU)
        assert peak_memory_bytes(CPU) >= n_bytes
