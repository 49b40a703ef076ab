"""Which heads train together, and how they are drawn."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.runtime.folders import TrialStart
from orchestrator.tuning.banking import banked_blocks, banks_of, draw_heads, planned_banks
from orchestrator.tuning.suggestions import build_suggester
from tests.orchestrator.tuning.test_sharing import HEAD, PARTIAL, factory_of, spec_of


def drawn(search: list[dict[str, Any]], wanted: dict[int, int], searcher: str) -> list[TrialStart]:
    spec = spec_of(search)
    tuner = spec.tuner.model_copy(update={"searcher": searcher})
    spec = spec.model_copy(update={"tuner": tuner})
    suggester = build_suggester(spec, [])
    return draw_heads(spec.search, wanted, suggester, factory_of(spec), known=())


@pytest.mark.parametrize("searcher", ["optuna", "random"])
def test_heads_are_new_and_the_vetted_default_comes_first(searcher: str) -> None:
    starts = drawn([PARTIAL, HEAD], {1: 5}, searcher)
    assert len({start.experiment.id for start in starts}) == 5
    assert [start.default for start in starts] == [True, False, False, False, False]
    assert {start.experiment.strategy.strategy for start in starts} == {"feature-extraction"}


@pytest.mark.parametrize("searcher", ["random", "grid"])
def test_a_searcher_that_begins_anew_goes_on_behind_what_is_known(searcher: str) -> None:
    block = HEAD | {"head_lr": [1e-4 * n for n in range(1, 61)]}
    spec = spec_of([block])
    spec = spec.model_copy(update={"tuner": spec.tuner.model_copy(update={"searcher": searcher})})
    factory = factory_of(spec)
    first = draw_heads(spec.search, {0: 40}, build_suggester(spec, []), factory, known=())
    known = [start.experiment.id for start in first]
    more = draw_heads(spec.search, {0: 10}, build_suggester(spec, []), factory, known=known)
    assert len(known) == 40
    assert len(more) == 10
    assert not {start.experiment.id for start in more} & set(known)


@pytest.mark.parametrize("searcher", ["optuna", "random", "grid"])
def test_a_finite_block_gives_what_it_has(searcher: str) -> None:
    finite = HEAD | {"head_lr": [1e-3, 3e-3]}
    starts = drawn([finite, finite | {"epochs": 3}], {0: 10}, searcher)
    assert len(starts) == 2


@pytest.mark.parametrize(
    ("changes", "banked"),
    [
        ({}, True),
        ({"augment": "light"}, False),
        ({"augment": ["none", "light"]}, False),
        ({"mixup": {"uniform": [0.0, 0.4]}}, False),
        ({"accumulate": 2}, False),
        ({"dropout": {"uniform": [0.0, 0.4]}, "seed": [0, 1]}, True),
    ],
)
def test_a_block_is_banked_when_all_its_experiments_are_heads_on_stored_features(
    changes: dict[str, Any], banked: bool
) -> None:
    spec = spec_of([PARTIAL, HEAD | changes])
    assert banked_blocks(spec.search, factory_of(spec)) == ([1] if banked else [])


def test_the_plan_says_how_many_heads_will_share_a_bank() -> None:
    spec = spec_of([PARTIAL, HEAD | {"head": ["linear", "mlp"]}, HEAD | {"seed": [1, 2]}])
    banks = planned_banks(spec.search, [5, 6, 2], factory_of(spec))
    assert [(bank["head"], bank["pooling"], bank["heads"]) for bank in banks] == [
        ("linear", "last", 5.0),
        ("mlp", "last", 3.0),
    ]


def test_linear_heads_share_a_bank_and_hidden_layers_are_spread() -> None:
    linear = drawn([HEAD], {0: 9}, "random")
    assert [len(bank) for bank in banks_of(linear, at_once=4)] == [9]
    hidden = drawn([HEAD | {"head": "mlp"}], {0: 9}, "random")
    assert [len(bank) for bank in banks_of(hidden, at_once=4)] == [3, 3, 3]
    both = banks_of([*linear, *hidden], at_once=1)
    assert sorted(len(bank) for bank in both) == [9, 9]
    ids = [start.experiment.id for bank in both for start in bank]
    assert sorted(ids) == sorted(start.experiment.id for start in [*linear, *hidden])


def test_hidden_layers_share_a_bank_where_padding_at_most_doubles_them() -> None:
    search = [HEAD | {"head": "mlp", "head_lr": 1e-3, "hidden": [64, 100, 128, 129, 300]}]
    banks = banks_of(drawn(search, {0: 5}, "grid"), at_once=1)
    widths = [sorted(start.experiment.strategy.hidden for start in bank) for bank in banks]
    assert widths == [[64, 100, 128], [129], [300]]


def test_a_bank_is_bounded_in_memory() -> None:
    wide = drawn([HEAD | {"head": "mlp", "hidden": 20_000}], {0: 6}, "random")
    sizes = [len(bank) for bank in banks_of(wide, at_once=1)]
    assert sizes == [4, 2]  # 10.3 M numbers each, 24 bytes a number, 1 GiB at most
