"""Drift is small for inputs like the training examples, and large for others."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.bundle.drift import DriftBaseline, DriftGauge, drift_baseline

RNG = np.random.default_rng(0)
MEAN, STD = RNG.uniform(-3, 3, 40), RNG.uniform(0.1, 5, 40)


def drawn(n: int, *, seed: int, shift: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(n, 40)) + shift
    return (MEAN + STD * noise).astype(np.float32)


@pytest.fixture(scope="module")
def baseline() -> DriftBaseline:
    return drift_baseline(drawn(2000, seed=1))


def test_mean_and_deviation_are_the_examples_own(baseline: DriftBaseline) -> None:
    examples = drawn(2000, seed=1).astype(np.float64)
    assert baseline.n == 2000
    np.testing.assert_allclose(baseline.mean, examples.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(baseline.std, examples.std(axis=0), rtol=1e-5)
    assert (baseline.distances(examples) <= baseline.distance).mean() == pytest.approx(0.95)


def test_distances_are_root_mean_square_deviations() -> None:
    baseline = DriftBaseline(n=2, mean=(1.0, -1.0), std=(2.0, 0.5), quantile=0.95, distance=1.0)
    found = baseline.distances(np.array([[1.0, -1.0], [3.0, -1.0], [5.0, 0.0]]))
    np.testing.assert_allclose(found, [0, np.sqrt(1 / 2), 2])


def test_usual_inputs_show_no_drift(baseline: DriftBaseline) -> None:
    gauge = DriftGauge(baseline, window=400)
    gauge.add(drawn(400, seed=2))
    drift = gauge.read()
    assert drift is not None
    assert drift.n == 400
    assert drift.shift == pytest.approx(1 / np.sqrt(400), abs=0.02)
    assert drift.far_share == pytest.approx(0.05, abs=0.04)


def test_shifted_inputs_do(baseline: DriftBaseline) -> None:
    gauge = DriftGauge(baseline)
    gauge.add(drawn(200, seed=2, shift=0.5))
    drift = gauge.read()
    assert drift is not None
    assert drift.shift == pytest.approx(0.5, abs=0.05)
    assert drift.far_share > 0.2


def test_only_the_newest_inputs_count(baseline: DriftBaseline) -> None:
    gauge = DriftGauge(baseline, window=50)
    assert gauge.read() is None
    gauge.add(drawn(200, seed=3, shift=5.0))
    for row in drawn(50, seed=4):
        gauge.add(row[None])
    alone = DriftGauge(baseline, window=50)
    alone.add(drawn(50, seed=4))
    assert gauge.read() == alone.read()


def test_a_feature_that_never_varied_does_not_rule_the_distance() -> None:
    examples = drawn(500, seed=5)
    examples[:, 7] = 0.25
    baseline = drift_baseline(examples)
    moved = examples[:100].copy()
    moved[:, 7] += 0.01
    np.testing.assert_allclose(
        baseline.distances(moved), baseline.distances(examples[:100]), rtol=1e-3
    )


def test_a_baseline_is_read_back_as_it_was_written(baseline: DriftBaseline) -> None:
    assert DriftBaseline.model_validate_json(baseline.model_dump_json()) == baseline
