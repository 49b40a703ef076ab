"""How long answers take: a curve measured where a bundle is made, and what autoscaling aims for."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from orchestrator.spec.frozen import Frozen

Runner = Literal["onnx", "torch"]

BATCH_SIZES = (1, 2, 4, 8, 16)

_POINT_S = 0.5  # spent on a point, where calls are quick
_FEWEST_CALLS, _MOST_CALLS = 3, 50
_TOO_LONG_S = 2.0  # a call; larger batches are then left out


class LatencyPoint(Frozen):
    """A forward pass of one batch size on so many threads."""

    threads: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    p50_ms: Annotated[float, Field(ge=0)]
    p95_ms: Annotated[float, Field(ge=0)]


class LatencyCurve(Frozen):
    """Forward passes as they were measured, on inputs that were prepared before."""

    cpu: str = Field(description="model of the processor")
    cores: Annotated[int, Field(ge=1)]
    runtime: Runner
    points: tuple[LatencyPoint, ...]

    def at(self, *, threads: int, batch: int = 1) -> LatencyPoint:
        """The point of a batch size on `threads` threads, or on the nearest fewer measured."""
        rows = [point for point in self.points if point.batch == batch]
        fitting = [point for point in rows if point.threads <= threads]
        return max(fitting or rows[:1], key=lambda point: point.threads)


def measure_latency(
    load: Callable[[int], Callable[[int], object]],
    *,
    runtime: Runner,
    cores: int,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyCurve:
    """The curve of a model on this machine.

    Args:
        load: Gives, for a number of threads, what answers a batch of a given size.
        runtime: What runs the model.
        cores: That it may use; threads are 1, 2, 4 … up to them.
        clock: Seconds.
    """
    points: list[LatencyPoint] = []
    for threads in _thread_counts(cores):
        answer = load(threads)
        for batch in BATCH_SIZES:
            times = list(_times(partial(answer, batch), clock))
            p50_s, p95_s = np.quantile(times, (0.5, 0.95))
            points.append(
                LatencyPoint(threads=threads, batch=batch, p50_ms=_ms(p50_s), p95_ms=_ms(p95_s))
            )
            if p50_s > _TOO_LONG_S:
                break
    return LatencyCurve(cpu=_processor(), cores=cores, runtime=runtime, points=tuple(points))


def target_ongoing_requests(
    curve: LatencyCurve, *, threads: int, within_ms: float, batched: bool = False
) -> int:
    """How many requests a replica should hold at once, for autoscaling to add one beyond that.

    By Little's law a replica that answers one request at a time, in `t` each, and holds `n` makes
    the newest wait `n * t`. The target is the largest `n` for which that is within the time that
    an answer may take, at the curve's 95 % quantile. With batches the wait is that of one pass of
    `n` inputs, and the target is the largest batch measured that is quick enough.

    Args:
        curve: Of the bundle.
        threads: Of one replica.
        within_ms: In which an answer should be there.
        batched: Whether the replica answers what it holds in one pass.

    Returns:
        At least 1: a model that is slower than asked for still has to hold one request.
    """
    if not batched:
        return max(1, int(within_ms / curve.at(threads=threads).p95_ms))
    used = curve.at(threads=threads).threads
    quick = [p.batch for p in curve.points if p.threads == used and p.p95_ms <= within_ms]
    return max(quick, default=1)


def _times(call: Callable[[], object], clock: Callable[[], float]) -> Iterator[float]:
    """Seconds of calls, after one that is not counted."""
    call()
    started_s, n_calls = clock(), 0
    while n_calls < _FEWEST_CALLS or (n_calls < _MOST_CALLS and clock() - started_s < _POINT_S):
        before_s = clock()
        call()
        yield clock() - before_s
        n_calls += 1


def _thread_counts(cores: int) -> Sequence[int]:
    counts = [1]
    while counts[-1] * 2 < cores:
        counts.append(counts[-1] * 2)
    return counts if cores == 1 else [*counts, cores]


def _processor() -> str:
    """The processor's model; Linux tells it in a file, elsewhere it is Python's name for it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _ms(seconds: float) -> float:
    return float(f"{1000 * seconds:.4g}")
