"""Near the end of the minutes, what cannot show an epoch of fine-tuning is not started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.runtime.folders import SweepFolder
from orchestrator.spec.experiment import HEAD as HEAD_PARENT
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.record import EpochRow, Record
from orchestrator.spec.search_space import Block
from orchestrator.tuning.clock import SweepClock
from orchestrator.tuning.deadline import Deadline
from orchestrator.tuning.experiments import ExperimentFactory
from orchestrator.tuning.plan import CostBook
from orchestrator.tuning.searcher import SweepSearcher
from orchestrator.tuning.suggestions import MOST_REPEATS, build_suggester
from tests.orchestrator.tuning.test_sharing import HEAD, PARTIAL, factory_of, spec_of

N_TRAIN, N_VALIDATION = 100, 20
EPOCH_S = 30.0
# The first trial of a kind is slow to start, so that the median is what counts.
SLOW_START_S = 300.0


class Sizes:
    """What a forecast asks of a data set."""

    def indices(self, split: str) -> Any:
        return np.arange({"train": N_TRAIN, "validation": N_VALIDATION}[split])


def experiment_of(written: Mapping[str, Any], **changes: object) -> Experiment:
    spec = spec_of([{**written, **changes}])
    (block,) = spec.search
    return factory_of(spec).make(block, block.vetted())


def record_of(experiment: Experiment, *phases: tuple[str, float]) -> Record:
    rows = tuple(
        EpochRow(
            epoch=n,
            phase=phase,
            train_loss=1.0,
            validation={},
            seconds=seconds,
            images_per_s=1.0,
        )
        for n, (phase, seconds) in enumerate(phases, start=1)
    )
    return Record(trial=experiment.id, status="finished", experiment=experiment, epochs=rows)


@pytest.fixture
def deadline_in(tmp_path: Path) -> Callable[..., Deadline]:
    def make(left_s: float | None, *records: Record) -> Deadline:
        clock = SweepClock(
            SweepFolder(tmp_path),
            minutes=None if left_s is None else left_s / 60,
            clock=lambda: 0.0,
        )
        costs = CostBook(tmp_path / "costs.json", threads=1)
        examples: Any = Sizes()
        return Deadline(clock, examples, costs=costs, stored=(), records=records)

    return make


def seen() -> Record:
    tuned = [("partial", SLOW_START_S), ("partial", EPOCH_S), ("partial", EPOCH_S)]
    return record_of(experiment_of(PARTIAL), ("warm-up", 0.01), *tuned)


def test_a_trial_whose_first_epoch_fits_starts(deadline_in: Callable[..., Deadline]) -> None:
    assert deadline_in(EPOCH_S + 5, seen()).allows(experiment_of(PARTIAL))
    assert not deadline_in(EPOCH_S - 5, seen()).allows(experiment_of(PARTIAL))


def test_the_warm_up_counts_unless_it_was_handed_over(
    deadline_in: Callable[..., Deadline],
) -> None:
    """A warm-up of fresh draws computes the frozen stages; here it reads features, all but free."""
    own = experiment_of(PARTIAL, warm_up="own")
    handed = own.model_copy(update={"parents": {HEAD_PARENT: "f" * 64}})
    deadline = deadline_in(1000, seen())
    own_s, handed_s = deadline.first_result_s(own), deadline.first_result_s(handed)
    assert own_s is not None
    assert handed_s is not None
    assert own_s > handed_s > EPOCH_S


def test_what_is_not_known_starts_and_so_does_everything_without_a_limit(
    deadline_in: Callable[..., Deadline],
) -> None:
    assert deadline_in(1, seen()).allows(experiment_of(PARTIAL, unfreeze=1))
    assert deadline_in(None, seen()).allows(experiment_of(PARTIAL))
    assert deadline_in(1).allows(experiment_of(PARTIAL))


def test_heads_on_features_always_start(deadline_in: Callable[..., Deadline]) -> None:
    assert deadline_in(1, seen()).allows(experiment_of(HEAD))


def test_the_reason_names_the_quickest(deadline_in: Callable[..., Deadline]) -> None:
    slower = experiment_of(PARTIAL, unfreeze=3)
    other = record_of(slower, ("partial", 4 * EPOCH_S))
    deadline = deadline_in(20, other, seen())
    assert deadline.reason() is None
    assert not deadline.allows(slower)
    assert not deadline.allows(experiment_of(PARTIAL))
    told = deadline.reason()
    assert told is not None
    assert told.startswith("no more trials start: 20 s of budget.minutes are left")
    assert "a partial trial of resnet18, takes about 3" in told


def searcher_of(
    folder: Path, in_time: Callable[[Experiment], bool], *, searcher: str = "optuna"
) -> SweepSearcher:
    spec = spec_of([PARTIAL, {**PARTIAL, "unfreeze": [3], "seed": 1}])
    spec = spec.model_copy(update={"tuner": spec.tuner.model_copy(update={"searcher": searcher})})
    factory: ExperimentFactory = factory_of(spec)

    def make(block: Block, values: Mapping[str, Any]) -> Experiment:
        return factory.make(block, values)

    return SweepSearcher(
        build_suggester(spec, []),
        make,
        spec.search,
        SweepFolder(folder),
        clock=SweepClock(SweepFolder(folder), minutes=None),
        in_time=in_time,
        known={},
        unfinished=[],
        room=1000,
        mode="max",
    )


@pytest.mark.parametrize("name", ["optuna", "random"])
def test_only_trials_that_are_in_time_start_and_the_rest_is_not_exhausted(
    tmp_path: Path, name: str
) -> None:
    def in_time(experiment: Experiment) -> bool:
        return bool(experiment.strategy.to_json()["unfreeze"] == 1)

    searcher = searcher_of(tmp_path, in_time, searcher=name)
    started = []
    for n in range(3):
        config = searcher.suggest(f"t{n}")
        assert isinstance(config, dict)
        started.append(SweepFolder(tmp_path).trial(config["trial"]).start().experiment)
    assert {e.strategy.to_json()["unfreeze"] for e in started} == {1}


@pytest.mark.parametrize("name", ["optuna", "random"])
def test_a_search_of_which_all_is_too_late_ends_and_can_be_continued(
    tmp_path: Path, name: str
) -> None:
    asked: list[str] = []

    def never(experiment: Experiment) -> bool:
        asked.append(experiment.id)
        return False

    searcher = searcher_of(tmp_path, never, searcher=name)
    assert searcher.suggest("t0") == SweepSearcher.FINISHED
    assert not searcher.exhausted
    assert len(asked) <= 2 * MOST_REPEATS + 2
    assert not list(tmp_path.glob("trials/*"))
