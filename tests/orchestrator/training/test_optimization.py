"""Rates over a phase's steps, against closed forms; optimisers, against torch's own defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from orchestrator.spec.strategy import Optimizer, Schedule, Scratch
from orchestrator.training.optimization import build_optimizer, build_schedule
from orchestrator.training.param_groups import ParamGroup
from orchestrator.training.phases import Phase, compile_phases

BASES = (1e-2, 3e-5)


def phase_of(schedule: Schedule, epochs: int, optimizer: Optimizer = "adamw") -> Phase:
    (phase,) = compile_phases(Scratch(schedule=schedule, epochs=epochs, optimizer=optimizer), 2)
    return phase


def rates(
    schedule: Schedule, *, epochs: int, steps_per_epoch: int, bases: tuple[float, ...] = BASES
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Rate of each group before every step and after the last: [steps + 1, groups]."""
    groups = tuple(
        ParamGroup(str(lr), lr, 0.0, (torch.nn.Parameter(torch.zeros(2)),)) for lr in bases
    )
    phase = phase_of(schedule, epochs)
    optimizer = build_optimizer(phase, groups)
    course = build_schedule(phase, optimizer, steps_per_epoch=steps_per_epoch)
    found = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(epochs * steps_per_epoch):
        for group in groups:
            group.parameters[0].grad = torch.ones(2)
        optimizer.step()
        course.step()
        found.append([group["lr"] for group in optimizer.param_groups])
    return np.array(found)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (3, 7), (15, 20)])
def test_cosine_falls_from_each_base_rate_to_1e_7_at_the_phases_end(
    epochs: int, steps: int
) -> None:
    n = epochs * steps
    k = np.arange(n + 1)[:, None]
    wave = (1 + np.cos(math.pi * k / n)) / 2
    expected = 1e-7 + (np.array(BASES) - 1e-7) * wave
    np.testing.assert_allclose(rates("cosine", epochs=epochs, steps_per_epoch=steps), expected)


def test_no_schedule_lifts_a_rate_above_its_base() -> None:
    bases = (1e-4, 5e-9)
    for schedule in ("constant", "step", "cosine", "onecycle", "linear-warm-up-cosine"):
        found = rates(schedule, epochs=4, steps_per_epoch=5, bases=bases)
        assert (found <= np.array(bases) * (1 + 1e-9)).all(), schedule


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (5, 9)])
def test_onecycle_is_torchs_own_with_each_groups_rate_for_its_peak(epochs: int, steps: int) -> None:
    n = epochs * steps
    parameter = torch.nn.Parameter(torch.zeros(2))
    reference = torch.optim.AdamW([{"params": [parameter], "lr": BASES[0]}])
    course = torch.optim.lr_scheduler.OneCycleLR(reference, max_lr=BASES[0], total_steps=n + 1)
    expected = [reference.param_groups[0]["lr"]]
    for _ in range(n):
        parameter.grad = torch.ones(2)
        reference.step()
        course.step()
        expected.append(reference.param_groups[0]["lr"])
    found = rates("onecycle", epochs=epochs, steps_per_epoch=steps)
    np.testing.assert_array_equal(found[:, 0], expected)
    np.testing.assert_allclose(found[:, 1] / found[:, 0], BASES[1] / BASES[0])


def test_onecycle_starts_at_a_25th_of_the_peak_and_ends_at_a_10_000th_of_that() -> None:
    found = rates("onecycle", epochs=10, steps_per_epoch=10)
    np.testing.assert_allclose(found[0], np.array(BASES) / 25)
    np.testing.assert_allclose(found.max(axis=0), np.array(BASES), rtol=1e-3)
    np.testing.assert_allclose(found[-1], np.array(BASES) / 25 / 1e4)
    assert found[:, 0].argmax() in (29, 30)


def test_linear_warm_up_takes_5_percent_of_the_steps_then_the_cosine_ends_at_1e_7() -> None:
    found = rates("linear-warm-up-cosine", epochs=10, steps_per_epoch=20)
    rise = 10
    ramp = np.array(BASES) * (np.arange(rise + 1)[:, None] + 1) / (rise + 1)
    k = np.arange(190 + 1)[:, None]
    fall = 1e-7 + (np.array(BASES) - 1e-7) * (1 + np.cos(math.pi * k / 190)) / 2
    np.testing.assert_allclose(found[: rise + 1], ramp)
    np.testing.assert_allclose(found[rise:], fall)


def test_step_drops_to_a_tenth_after_each_third() -> None:
    found = rates("step", epochs=3, steps_per_epoch=4)
    expected = np.array(BASES) * np.repeat([1, 0.1, 0.01], 4)[:, None]
    np.testing.assert_allclose(found[:-1], expected)


def test_constant_stays() -> None:
    assert (rates("constant", epochs=2, steps_per_epoch=3) == np.array(BASES)).all()


@pytest.mark.parametrize("schedule", ["step", "cosine", "onecycle", "linear-warm-up-cosine"])
def test_a_phase_of_a_single_step_has_a_finite_positive_rate(schedule: Schedule) -> None:
    found = rates(schedule, epochs=1, steps_per_epoch=1)
    assert np.isfinite(found).all()
    assert (found > 0).all()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_step_is_torchs_own_with_each_groups_rate_and_decay(name: Optimizer) -> None:
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(3))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    groups = (ParamGroup("w", 1e-2, 0.1, (mine[0],)), ParamGroup("b", 1e-3, 0.0, (mine[1],)))
    optimizer = build_optimizer(replace(phase_of("constant", 1), optimizer=name), groups)
    kinds: dict[str, Callable[[torch.nn.Parameter, float, float], torch.optim.Optimizer]] = {
        "sgd": lambda p, lr, wd: torch.optim.SGD(
            [p], lr=lr, momentum=0.9, nesterov=True, weight_decay=wd
        ),
        "adam": lambda p, lr, wd: torch.optim.Adam([p], lr=lr, weight_decay=wd),
        "adamw": lambda p, lr, wd: torch.optim.AdamW([p], lr=lr, weight_decay=wd),
    }
    references = [kinds[name](theirs[0], 1e-2, 0.1), kinds[name](theirs[1], 1e-3, 0.0)]
    for _ in range(3):
        for ours, other in zip(mine, theirs, strict=True):
            ours.grad = ours.detach() * 2 + 1
            other.grad = other.detach() * 2 + 1
        optimizer.step()
        for reference in references:
            reference.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
