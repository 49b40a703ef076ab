"""How well frozen features suit a task, without training: LogME and nearest neighbours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.features.store import Float32

Float64 = npt.NDArray[np.float64]

MOST_ROUNDS = 20
TOLERANCE = 1e-3


def log_me(features: Float32, targets: npt.NDArray[np.float64]) -> float:
    """Mean log evidence of a Bayesian linear model from features to each target column.

    You et al., LogME: Practical Assessment of Pre-trained Models for Transfer Learning, ICML 2021,
    algorithm 1, with the fixed-point iteration of You et al., JMLR 2022. Higher is better;
    comparable between feature sets on the same examples and targets.

    Args:
        features: float32 [N, D].
        targets: 0/1 [N, C].
    """
    f = features.astype(np.float64)
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    # Directions at the level of rounding carry no evidence, and would divide by nearly nothing.
    kept = s > s.max(initial=0.0) * max(f.shape) * np.finfo(np.float64).eps
    u, s2 = u[:, kept], np.square(s[kept])
    return float(np.mean([_evidence(u, s2, column, f.shape[1]) for column in targets.T]))


def _evidence(u: Float64, s2: Float64, y: Float64, width: int) -> float:
    """Log evidence an example of one column, at the best noise and weight precision."""
    n = len(y)
    if not len(s2):  # the features say nothing: all is noise, of the targets' own size
        return -0.5 * (float(np.log(2 * np.pi * (y @ y + 1e-12) / n)) + 1)
    projected2 = np.square(u.T @ y)
    outside2 = max(float(y @ y - projected2.sum()), 0.0)
    ratio = 1.0  # weight precision over noise precision
    alpha = beta = 1.0
    for _ in range(MOST_ROUNDS):
        gamma = float((s2 / (s2 + ratio)).sum())
        weights2 = float((s2 * projected2 / np.square(s2 + ratio)).sum())
        residual2 = float((projected2 / np.square(1 + s2 / ratio)).sum()) + outside2
        alpha = gamma / (weights2 + 1e-12)
        beta = (n - gamma) / (residual2 + 1e-12)
        new_ratio = alpha / beta
        if abs(new_ratio - ratio) / ratio <= TOLERANCE:
            break
        ratio = new_ratio
    evidence = (
        width / 2 * np.log(alpha)
        + n / 2 * np.log(beta)
        - 0.5 * np.log(alpha + beta * s2).sum()
        - 0.5 * (width - len(s2)) * np.log(alpha)
        - beta / 2 * residual2
        - alpha / 2 * weights2
        - n / 2 * np.log(2 * np.pi)
    )
    return float(evidence / n)


def knn_accuracy(features: Float32, classes: npt.NDArray[np.int64], *, k: int = 5) -> float:
    """Leave-one-out accuracy of the k nearest neighbours by cosine similarity.

    Args:
        features: float32 [N, D].
        classes: Class numbers [N].
        k: Neighbours that vote, each by its similarity.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    n, n_classes = len(unit), int(classes.max()) + 1
    k = min(k, n - 1)
    right = 0
    for start in range(0, n, 1024):
        similarity = unit[start : start + 1024] @ unit.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        votes = np.zeros((len(similarity), n_classes))
        for column in nearest.T:
            votes[rows, classes[column]] += 1 + similarity[rows, column]
        right += int((votes.argmax(axis=1) == classes[start : start + 1024]).sum())
    return right / n
