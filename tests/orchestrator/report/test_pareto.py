"""The front is what brute force says it is."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.report.pareto import pareto_front


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(20))
def test_the_front_holds_exactly_the_points_that_none_beats(mode, seed):
    rng = np.random.default_rng(seed)
    costs = rng.integers(1, 12, 40).astype(float)  # many ties
    scores = rng.integers(0, 9, 40) / 8
    gain = scores if mode == "max" else -scores
    unbeaten = {
        i
        for i in range(40)
        if not any(
            costs[j] <= costs[i]
            and gain[j] >= gain[i]
            and (costs[j] < costs[i] or gain[j] > gain[i])
            for j in range(40)
        )
    }
    front = pareto_front(costs.tolist(), scores.tolist(), mode)
    assert set(front) == unbeaten
    assert [costs[i] for i in front] == sorted(costs[i] for i in front)


def test_no_points_have_no_front():
    assert pareto_front([], [], "max") == []
