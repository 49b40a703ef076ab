from collections.abc import Sequence

import pytest

from orchestrator.spec.parts import ObjectiveSpec
from orchestrator.spec.search_space import Block, Choice, Constant, Range
from orchestrator.spec.sweep import SweepSpec, TunerSpec
from orchestrator.tuning.suggestions import (
    MOST_REPEATS,
    Outcome,
    StudySuggester,
    Suggester,
    Suggestion,
    block_size,
    build_suggester,
)

BACKBONE = Constant(value={"name": "resnet18", "weights": "default"})
HEADS = Block(
    strategy="feature-extraction",
    dimensions={"backbone": BACKBONE, "head_lr": Range(kind="log", low=1e-4, high=1e-1)},
)
DEPTHS = Block(
    strategy="partial",
    dimensions={"backbone": BACKBONE, "unfreeze": Choice(values=(1, 2, 3))},
)
ONE = Block(strategy="full", dimensions={"backbone": BACKBONE})


def spec_of(*blocks: Block, searcher: str = "optuna", seed: int = 0) -> SweepSpec:
    return SweepSpec.model_validate(
        {
            "name": "s",
            "task": "image-classification",
            "data": {"train": "/data"},
            "search": blocks,
            "seed": seed,
            "tuner": TunerSpec(searcher=searcher),
        }
    )


def drawn(suggester: Suggester, n: int) -> list[Suggestion]:
    """`n` suggestions, each told a value that grows with its rate."""
    found = []
    for _ in range(n):
        suggestion = suggester.ask()
        if suggestion is None:
            break
        suggester.tell(suggestion.ask, suggestion.values.get("head_lr", 0.0))
        found.append(suggestion)
    return found


def outcomes(suggestions: Sequence[Suggestion], blocks: Sequence[Block]) -> list[Outcome]:
    return [
        Outcome(
            block=s.block,
            searched={name: s.values[name] for name in blocks[s.block].searched},
            default=s.default,
            value=0.5,
        )
        for s in suggestions
    ]


@pytest.mark.parametrize("searcher", ["optuna", "random"])
def test_the_first_point_of_each_block_is_its_vetted_default(searcher: str) -> None:
    first = drawn(build_suggester(spec_of(HEADS, DEPTHS, searcher=searcher), []), 2)
    assert [(s.block, s.default) for s in first] == [(0, True), (1, True)]
    assert first[0].values["head_lr"] == pytest.approx(1e-3)
    assert first[1].values["unfreeze"] == 2


@pytest.mark.parametrize("searcher", ["optuna", "random"])
def test_blocks_are_visited_in_turn(searcher: str) -> None:
    blocks = [
        s.block for s in drawn(build_suggester(spec_of(HEADS, HEADS, searcher=searcher), []), 8)
    ]
    assert blocks == [0, 1] * 4


@pytest.mark.parametrize("searcher", ["optuna", "random"])
def test_suggestions_have_only_their_own_blocks_dimensions(searcher: str) -> None:
    for s in drawn(build_suggester(spec_of(HEADS, DEPTHS, searcher=searcher), []), 8):
        wanted = {"backbone", "head_lr"} if s.block == 0 else {"backbone", "unfreeze"}
        assert set(s.values) == wanted


def test_the_study_goes_on_after_its_records_without_repeating_defaults() -> None:
    blocks = (HEADS, DEPTHS)
    before = drawn(build_suggester(spec_of(*blocks), []), 4)
    after = drawn(build_suggester(spec_of(*blocks), outcomes(before, blocks)), 4)
    assert not any(s.default for s in after)
    assert [s.block for s in after] == [0, 1, 0, 1]
    rates = {s.values["head_lr"] for s in before if s.block == 0}
    assert rates.isdisjoint(s.values["head_lr"] for s in after if s.block == 0)


def test_a_default_that_an_earlier_run_did_not_reach_comes_first() -> None:
    only_first = outcomes(drawn(build_suggester(spec_of(HEADS, DEPTHS), []), 1), (HEADS, DEPTHS))
    following = build_suggester(spec_of(HEADS, DEPTHS), only_first).ask()
    assert following is not None
    assert (following.block, following.default) == (1, True)


def test_the_study_learns_where_values_are_good() -> None:
    suggester = StudySuggester([HEADS], ObjectiveSpec(metric="accuracy"), seed=0, earlier=[])
    rates = [s.values["head_lr"] for s in drawn(suggester, 60)]
    early, late = sorted(rates[:10])[5], sorted(rates[-20:])[10]
    assert late > 3 * early


def test_a_draw_that_takes_long_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.tune.search.optuna.optuna_search.DEFINE_BY_RUN_WARN_THRESHOLD_S", 0)
    assert len(drawn(build_suggester(spec_of(HEADS), []), 3)) == 3  # warnings are errors in tests


def test_random_point_i_is_a_function_of_seed_and_i_alone() -> None:
    spec = spec_of(HEADS, DEPTHS, searcher="random", seed=3)
    alone = drawn(build_suggester(spec, []), 10)
    told = outcomes(alone, (HEADS, DEPTHS))
    assert [s.values for s in drawn(build_suggester(spec, told), 10)] == [s.values for s in alone]
    other = drawn(build_suggester(spec_of(HEADS, searcher="random", seed=4), []), 10)
    assert [s.values for s in other] != [s.values for s in alone]


def test_a_grid_is_every_combination_once() -> None:
    block = Block(
        strategy="partial",
        dimensions={
            "backbone": BACKBONE,
            "unfreeze": Range(kind="int", low=1, high=3),
            "head": Choice(values=("linear", "mlp")),
        },
    )
    points = drawn(build_suggester(spec_of(block, searcher="grid"), []), 100)
    assert len(points) == block_size(block) == 6
    assert len({(s.values["unfreeze"], s.values["head"]) for s in points}) == 6


@pytest.mark.parametrize("searcher", ["optuna", "random", "grid"])
def test_a_finite_search_ends(searcher: str) -> None:
    suggester = build_suggester(spec_of(DEPTHS, ONE, searcher=searcher), [])
    seen: set[tuple[int, object]] = set()
    repeats = 0
    for _ in range(1000):
        suggestion = suggester.ask()
        if suggestion is None:
            break
        point = (suggestion.block, suggestion.values.get("unfreeze"))
        suggester.tell(suggestion.ask, 0.5)
        repeats = repeats + 1 if point in seen else 0
        suggester.repeated(suggestion.block, repeats)
        seen.add(point)
    else:
        pytest.fail("the search never ended")
    assert (1, None) in seen
    assert len(seen) >= 3


def test_a_block_that_repeats_itself_is_left_alone() -> None:
    suggester = build_suggester(spec_of(HEADS, DEPTHS), [])
    suggester.repeated(1, MOST_REPEATS)
    assert {s.block for s in drawn(suggester, 8)[2:]} == {0}


def test_choices_of_mappings_and_lists_come_back_as_they_were() -> None:
    values = ({"name": "resnet18", "weights": "none"}, {"name": "resnet50", "weights": "default"})
    block = Block(
        strategy="full",
        dimensions={
            "backbone": Choice(values=values),
            "thirds": Choice(values=([0.1, 0.5, 1.0], [0.01, 0.1, 1.0])),
        },
    )
    for suggestion in drawn(build_suggester(spec_of(block), []), 6):
        assert suggestion.values["backbone"] in values
        assert len(suggestion.values["thirds"]) == 3
