"""Weights between two ends."""

import torch

from orchestrator.training.wise_ft import ALPHAS, interpolated


def test_weights_lie_on_the_line_between_the_ends_and_counters_are_the_tuned_ones() -> None:
    zero = {"w": torch.tensor([1.0, -2.0]), "n": torch.tensor(3)}
    tuned = {"w": torch.tensor([3.0, 2.0]), "n": torch.tensor(9)}
    found = interpolated(zero, tuned, 0.25)
    assert torch.equal(found["w"], torch.tensor([1.5, -1.0]))
    assert found["n"] == 9
    for alpha, end in ((0.0, zero), (1.0, tuned)):
        assert torch.equal(interpolated(zero, tuned, alpha)["w"], end["w"])


def test_both_ends_are_tried_and_the_fine_tuned_one_first() -> None:
    assert ALPHAS[0] == 1.0
    assert ALPHAS[-1] == 0.0
    assert len(ALPHAS) == 11
