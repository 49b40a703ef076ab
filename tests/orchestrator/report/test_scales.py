"""Scales put values where they belong and label places that exist."""

from __future__ import annotations

import math

import pytest

from orchestrator.report.scales import (
    Choice,
    Linear,
    Log,
    amount_over,
    choice_over,
    linear_over,
    nice_step,
    scale_over,
)


def test_a_linear_scale_maps_its_ends_and_its_middle():
    scale = Linear(2.0, 6.0)
    assert [scale(2), scale(4), scale(6)] == [0, 0.5, 1]


def test_a_log_scale_puts_equal_ratios_at_equal_distances():
    scale = Log(1e-5, 1e-1)
    assert scale(1e-3) == pytest.approx(0.5)
    assert scale(1e-4) - scale(1e-5) == pytest.approx(scale(1e-1) - scale(1e-2))


@pytest.mark.parametrize("low", [1e-6, 0.003, 1.0, 77.0])
@pytest.mark.parametrize("ratio", [1.01, 1.7, 4.0, 33.0, 1e6])
@pytest.mark.parametrize("kind", [Linear, Log])
def test_ticks_lie_on_the_scale_in_order_and_differ(kind, low, ratio):
    ticks = kind(low, low * ratio).ticks()
    places = [tick.at for tick in ticks]
    assert 2 <= len(ticks) <= 10
    assert places == sorted(places)
    assert all(-1e-6 <= at <= 1 + 1e-6 for at in places)
    assert len({tick.label for tick in ticks}) == len(ticks)


@pytest.mark.parametrize("least", [0.00013, 0.7, 1.0, 3.3, 4999.0])
def test_a_nice_step_is_one_two_or_five_times_a_power_of_ten(least):
    step = nice_step(least)
    assert least <= step < 2.6 * least
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9)) in {1, 2, 5}


def test_choices_are_numbers_by_size_then_words_and_lie_inside():
    scale = choice_over([64, 8, "b", "a", 16, 8, [1, 2]])
    assert scale.values == ("8", "16", "64", "[1, 2]", "a", "b")
    assert 0 < scale(8) < scale(16) < scale("b") < 1


def test_equal_values_still_make_a_scale():
    assert linear_over([3.0, 3.0])(3.0) == pytest.approx(0.5)
    assert linear_over([])(0.5) == pytest.approx(0.5)
    assert amount_over([5.0])(5.0) == pytest.approx(0.5)


def test_a_parameter_gets_the_course_it_was_searched_on_where_its_values_allow():
    assert isinstance(scale_over([1e-4, 1e-2], "log"), Log)
    assert isinstance(scale_over([0.0, 1e-2], "log"), Linear)
    assert isinstance(scale_over([0.1, 0.2], "linear"), Linear)
    assert isinstance(scale_over([0.1, "auto"], "log"), Choice)
    assert isinstance(scale_over([True, False], "linear"), Choice)
