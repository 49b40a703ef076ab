"""Mixup and cutmix are convex: what a target gains in share, the image shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.spec.strategy import Scratch
from orchestrator.training.mixing import mixed
from orchestrator.training.phases import Phase, compile_phases

N = 6


def phase_with(mixup: float, cutmix: float) -> Phase:
    (phase,) = compile_phases(Scratch(), 2)
    return replace(phase, mixup=mixup, cutmix=cutmix)


def batch() -> tuple[Tensor, Tensor]:
    """Image i is of the one value i, and its target the i-th unit vector."""
    images = torch.arange(N, dtype=torch.float32)[:, None, None, None].expand(N, 3, 20, 16)
    return images.clone(), torch.eye(N)


@given(alpha=st.floats(0.05, 5), seed=st.integers(0, 2**31 - 1), step=st.integers(0, 1000))
def test_mixup_blends_pixels_by_the_targets_shares(alpha: float, seed: int, step: int) -> None:
    images, targets = batch()
    new, shares = mixed(images, targets, phase_with(alpha, 0), seed=seed, epoch=1, step=step)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(N))
    expected = shares @ torch.arange(N, dtype=torch.float32)
    torch.testing.assert_close(new, expected[:, None, None, None].expand_as(new))


@given(alpha=st.floats(0.05, 5), seed=st.integers(0, 2**31 - 1), step=st.integers(0, 1000))
def test_cutmix_shares_are_areas(alpha: float, seed: int, step: int) -> None:
    images, targets = batch()
    new, shares = mixed(images, targets, phase_with(0, alpha), seed=seed, epoch=1, step=step)
    areas = torch.stack([(new[:, 0] == i).float().mean((1, 2)) for i in range(N)], dim=1)
    torch.testing.assert_close(shares, areas)
    torch.testing.assert_close(shares.sum(1), torch.ones(N))


def test_cutmix_pastes_one_rectangle_at_the_same_place() -> None:
    images, targets = batch()
    new, _ = mixed(images, targets, phase_with(0, 1.0), seed=3, epoch=1, step=0)
    changed = new[:, 0] != images[:, 0]
    moved = changed.flatten(1).any(1)
    assert moved.any()
    first = changed[moved][0]
    rows, columns = first.any(1).sum(), first.any(0).sum()
    assert first.sum() == rows * columns
    assert all(torch.equal(one, first) for one in changed[moved])


def test_the_choice_depends_on_seed_epoch_and_step_alone() -> None:
    images, targets = batch()
    phase = phase_with(0.4, 0.4)

    def run(seed: int, epoch: int, step: int) -> Tensor:
        return mixed(images, targets, phase, seed=seed, epoch=epoch, step=step)[1]

    first = run(1, 2, 3)
    torch.manual_seed(99)
    assert torch.equal(run(1, 2, 3), first)
    assert not torch.equal(run(2, 2, 3), first)
    assert not torch.equal(run(1, 3, 3), first)
    assert not torch.equal(run(1, 2, 4), first)


def test_with_both_about_half_of_the_batches_take_each() -> None:
    images, targets = batch()
    blended = 0
    for step in range(200):
        new, _ = mixed(images, targets, phase_with(1.0, 1.0), seed=0, epoch=1, step=step)
        blended += bool((new != new.round()).any())
    assert 70 < blended < 130


@pytest.mark.parametrize(("mixup", "cutmix", "n"), [(0, 0, N), (0.5, 0.5, 1)])
def test_nothing_is_mixed_when_not_asked_for_or_with_nobody(
    mixup: float, cutmix: float, n: int
) -> None:
    images, targets = batch()
    new, shares = mixed(images[:n], targets[:n], phase_with(mixup, cutmix), seed=0, epoch=1, step=0)
    assert torch.equal(new, images[:n])
    assert torch.equal(shares, targets[:n])


def test_the_given_images_are_left_as_they_were() -> None:
    images, targets = batch()
    before = images.clone()
    for step in range(8):
        mixed(images, targets, phase_with(1.0, 1.0), seed=0, epoch=1, step=step)
    assert torch.equal(images, before)
