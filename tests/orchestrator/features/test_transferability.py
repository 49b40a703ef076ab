"""LogME against the evidence itself, and neighbours against scikit-learn's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.stats import multivariate_normal  # type: ignore[import-untyped]
from sklearn.neighbors import KNeighborsClassifier

from orchestrator.features.store import Float32
from orchestrator.features.transferability import knn_accuracy, log_me

Float64 = npt.NDArray[np.float64]


def evidence_at_best(features: Float32, y: Float64) -> float:
    """Largest log density an example of y ~ N(0, F Fᵀ / α + I / β), by direct search."""
    f = features.astype(np.float64)

    def loss(logs: Float64) -> float:
        alpha, beta = np.exp(np.clip(logs, -15, 15))
        covariance = f @ f.T / alpha + np.eye(len(y)) / beta
        return -float(multivariate_normal.logpdf(y, cov=covariance)) / len(y)

    starts = [(a, b) for a in (-2.0, 2.0, 5.0) for b in (0.0, 2.0)]
    return -min(float(minimize(loss, start, method="Nelder-Mead").fun) for start in starts)


@pytest.mark.parametrize(("n", "width"), [(30, 4), (40, 12), (12, 20)])
@pytest.mark.parametrize("seed", [0, 1])
def test_log_me_is_the_evidence_at_its_best_precisions(n: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scales = np.geomspace(1, 0.1, width)
    features = (rng.normal(size=(n, width)) * scales).astype(np.float32)
    scores = features @ rng.normal(size=width) + rng.normal(size=n)
    targets = np.stack([scores > 0, scores <= 0], axis=1).astype(np.float64)
    expected = np.mean([evidence_at_best(features, column) for column in targets.T])
    assert log_me(features, targets) == pytest.approx(expected, abs=2e-3)


def test_log_me_grows_with_the_signal() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 120)
    targets = np.eye(3)[classes]
    noise = rng.normal(size=(120, 16))
    directions = rng.normal(size=(3, 16))
    found = [
        log_me((noise + strength * directions[classes]).astype(np.float32), targets)
        for strength in (0, 0.5, 1, 2, 4)
    ]
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.1


def test_log_me_ignores_columns_that_say_nothing_new() -> None:
    """Zero columns, as a dead unit gives, leave the score where it was."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(50, 5)).astype(np.float32)
    targets = np.eye(2)[(features[:, 0] > 0).astype(int)]
    padded = np.concatenate([features, np.zeros((50, 7), np.float32)], axis=1)
    assert log_me(padded, targets) == pytest.approx(log_me(features, targets), abs=1e-3)


@pytest.mark.parametrize(("n", "width"), [(6, 40), (20, 1), (40, 40)])
def test_log_me_is_finite_whatever_the_shape(n: int, width: int) -> None:
    rng = np.random.default_rng(2)
    targets = np.eye(2)[np.arange(n) % 2]
    for features in (
        rng.normal(size=(n, width)),
        np.repeat(rng.normal(size=(1, width)), n, axis=0),
        np.eye(n, width),
        np.zeros((n, width)),
    ):
        assert np.isfinite(log_me(features.astype(np.float32), targets))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_neighbours_are_scikit_learns_left_one_out(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, 80).astype(np.int64)
    features = (rng.normal(size=(80, 6)) + 1.2 * np.eye(3, 6)[classes]).astype(np.float32)
    reference = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda distance: 2 - distance
    )
    expected = 0
    for i in range(80):
        rest = np.arange(80) != i
        reference.fit(features[rest], classes[rest])
        expected += int(reference.predict(features[i : i + 1])[0] == classes[i])
    assert knn_accuracy(features, classes, k=k) == pytest.approx(expected / 80)


def test_neighbours_do_not_see_the_example_itself() -> None:
    """Of two classes that alternate on a circle, the nearest other point is always wrong."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert knn_accuracy(features, np.arange(12) % 2, k=1) == 0.0


def test_neighbours_in_more_rows_than_are_compared_at_once() -> None:
    rng = np.random.default_rng(3)
    classes = rng.integers(0, 2, 1500).astype(np.int64)
    features = np.eye(2, 3)[classes] + 0.05 * rng.normal(size=(1500, 3))
    assert knn_accuracy(features.astype(np.float32), classes) == 1.0


def test_fewer_examples_than_neighbours_still_vote() -> None:
    features = np.array([[1, 0], [0.9, 0.1], [0, 1]], np.float32)
    assert knn_accuracy(features, np.array([0, 0, 0]), k=5) == 1.0
