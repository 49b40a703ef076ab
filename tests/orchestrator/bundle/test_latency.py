"""A curve is measured with the clock it is given, and tells what a replica may hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.bundle.latency import (
    BATCH_SIZES,
    LatencyCurve,
    LatencyPoint,
    measure_latency,
    target_ongoing_requests,
)


class Machine:
    """Time passes only while it works: `batch / threads` times `image_s`."""

    def __init__(self, image_s: float) -> None:
        self.now_s, self.image_s, self.loads, self.calls = 0.0, image_s, [], 0

    def clock(self) -> float:
        return self.now_s

    def load(self, threads: int) -> Callable[[int], object]:
        self.loads.append(threads)

        def answer(batch: int) -> None:
            self.calls += 1
            self.now_s += self.image_s * batch / threads

        return answer


def measured(machine: Machine, cores: int) -> LatencyCurve:
    return measure_latency(machine.load, runtime="onnx", cores=cores, clock=machine.clock)


def test_every_batch_size_is_measured_on_one_two_four_and_all_threads() -> None:
    machine = Machine(image_s=0.010)
    curve = measured(machine, 6)
    assert machine.loads == [1, 2, 4, 6]
    assert {(p.threads, p.batch) for p in curve.points} == {
        (t, b) for t in (1, 2, 4, 6) for b in BATCH_SIZES
    }
    for point in curve.points:
        expected = pytest.approx(10 * point.batch / point.threads, rel=1e-3)
        assert (point.p50_ms, point.p95_ms) == (expected, expected)
    assert (curve.cores, curve.runtime) == (6, "onnx")
    assert curve.cpu


def test_a_single_core_is_measured_once() -> None:
    machine = Machine(image_s=0.010)
    measured(machine, 1)
    assert machine.loads == [1]


def test_a_slow_model_is_not_asked_for_larger_batches() -> None:
    machine = Machine(image_s=1.5)
    curve = measured(machine, 1)
    assert [p.batch for p in curve.points] == [1, 2]
    assert machine.calls == 2 * 4


@pytest.fixture
def curve() -> LatencyCurve:
    rows = [(1, 1, 20.0), (1, 4, 70.0), (1, 8, 130.0), (2, 1, 12.0), (2, 4, 40.0), (2, 8, 75.0)]
    points = [LatencyPoint(threads=t, batch=b, p50_ms=p * 0.8, p95_ms=p) for t, b, p in rows]
    return LatencyCurve(cpu="one", cores=2, runtime="onnx", points=tuple(points))


def test_a_replica_holds_what_it_can_answer_in_time_one_after_the_other(
    curve: LatencyCurve,
) -> None:
    assert target_ongoing_requests(curve, threads=1, within_ms=100) == 5
    assert target_ongoing_requests(curve, threads=2, within_ms=100) == 8
    assert target_ongoing_requests(curve, threads=1, within_ms=10) == 1


def test_with_batches_it_holds_the_largest_that_is_quick_enough(curve: LatencyCurve) -> None:
    assert target_ongoing_requests(curve, threads=1, within_ms=100, batched=True) == 4
    assert target_ongoing_requests(curve, threads=2, within_ms=100, batched=True) == 8
    assert target_ongoing_requests(curve, threads=1, within_ms=10, batched=True) == 1


def test_threads_that_were_not_measured_count_as_the_next_fewer(curve: LatencyCurve) -> None:
    assert curve.at(threads=7) == curve.at(threads=2)
    assert curve.at(threads=1, batch=4).p95_ms == 70
