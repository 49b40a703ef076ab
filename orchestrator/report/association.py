"""Association: how strongly a searched value goes with the score, over the trials that set it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.tasks.metrics import Floats

FEWEST = 5  # below this, a rank correlation says nothing


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Spearman's ρ with ties at their mean rank; None where either side is constant.

    Args:
        xs: At least `FEWEST` values, else the answer is None.
        ys: As many.
    """
    if len(xs) < FEWEST:
        return None
    a, b = mean_ranks(np.asarray(xs, float)), mean_ranks(np.asarray(ys, float))
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def stands_out(correlation: float | None, n: int) -> bool:
    """Whether a rank correlation over `n` trials is beyond what chance gives one time in twenty.

    Under independence ρ has a standard deviation of 1/√(n − 1) (Hotelling & Pabst, 1936).
    """
    return correlation is not None and n > 1 and abs(correlation) > 1.96 / np.sqrt(n - 1)


def mean_ranks(values: Floats) -> Floats:
    """The rank of each value, from 1, ties at the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means = ends - (counts - 1) / 2
    ranks: Floats = means[inverse]
    return ranks
