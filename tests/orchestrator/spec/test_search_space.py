"""Dimensions clamp a wish to what was asked for, and a block's default lies inside its ranges."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec.search_space import Block, Choice, Constant, Range
from orchestrator.spec.strategy import STRATEGIES

numbers = st.floats(1e-6, 1e6)
wishes = st.none() | st.booleans() | st.text(max_size=3) | st.floats(-1e9, 1e9)
ranges = st.builds(
    lambda kind, pair: Range(
        kind=kind,
        low=round(min(pair)) if kind == "int" else min(pair),
        high=round(max(pair)) + 1 if kind == "int" else max(pair),
    ),
    st.sampled_from(["log", "uniform", "int"]),
    st.tuples(numbers, numbers),
)


@given(ranges, wishes)
def test_a_range_clamps_to_a_member(dim: Range, wish: Any) -> None:
    value = dim.clamp(wish)

    assert dim.low <= value <= dim.high
    assert isinstance(value, int) == (dim.kind == "int")


@given(ranges, st.floats(0, 1))
def test_a_member_of_a_range_stays_as_it_is(dim: Range, share: float) -> None:
    member = min(dim.low + share * (dim.high - dim.low), dim.high)
    if dim.kind == "int":
        member = round(member)

    assert dim.clamp(member) == member


def test_without_a_wish_a_range_gives_its_middle() -> None:
    assert Range(kind="log", low=1e-5, high=1e-3).clamp(None) == pytest.approx(1e-4)
    assert Range(kind="uniform", low=0.0, high=0.5).clamp(None) == 0.25
    assert Range(kind="int", low=2, high=10).clamp(None) == 6


@given(st.lists(st.integers() | st.text(max_size=3), min_size=1, unique=True), wishes)
def test_a_choice_clamps_to_a_member(values: list[Any], wish: Any) -> None:
    assert Choice(values=tuple(values)).clamp(wish) in values
    assert all(Choice(values=tuple(values)).clamp(value) == value for value in values)


def test_a_choice_of_numbers_gives_the_closest_and_of_words_the_first() -> None:
    assert Choice(values=(1, 4, 9)).clamp(6) == 4
    assert Choice(values=("mlp", "linear")).clamp("conv") == "mlp"
    assert Choice(values=(None, 0.5)).clamp(0.7) is None


@given(wishes)
def test_a_constant_is_what_it_is(wish: Any) -> None:
    assert Constant(value=7).clamp(wish) == 7


@given(
    st.sampled_from(sorted(STRATEGIES)),
    st.dictionaries(
        st.sampled_from(["dropout", "weight_decay", "label_smoothing", "clip_norm"]),
        st.tuples(st.floats(0, 0.4), st.floats(0.5, 0.9)),
    ),
)
def test_a_vetted_default_lies_inside_every_range(
    strategy: str, bounds: dict[str, tuple[float, float]]
) -> None:
    dims = {name: Range(kind="uniform", low=a, high=b) for name, (a, b) in bounds.items()}
    vetted = Block(strategy=strategy, dimensions={**dims}).vetted()

    fields = STRATEGIES[strategy].model_fields
    for name, (low, high) in bounds.items():
        assert low <= vetted[name] <= high
        if low <= fields[name].default <= high:
            assert vetted[name] == fields[name].default
    STRATEGIES[strategy].model_validate(vetted)


def test_only_what_varies_is_searched() -> None:
    block = Block(
        strategy="partial",
        dimensions={"epochs": Constant(value=3), "unfreeze": Choice(values=(1, 2))},
    )

    assert list(block.searched) == ["unfreeze"]
    assert block.vetted() == {"epochs": 3, "unfreeze": 2}
