from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from orchestrator.runtime.folders import SweepFolder
from orchestrator.spec.search_space import Block, Choice, Constant
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tuning.clock import SweepClock
from orchestrator.tuning.scheduler import FlaggingScheduler, first_rung

BACKBONE = Constant(value={"name": "resnet18", "weights": "default"})


@dataclass
class Flags:
    """Where the scheduler raises its flags."""

    raised: dict[str, str] = field(default_factory=dict)

    def stop(self, trial: str, reason: str) -> None:
        self.raised[trial] = reason


@dataclass(frozen=True)
class Running:
    """What the scheduler reads of a Tune trial."""

    trial_id: str
    block: int = 0
    handed_over: bool = False
    whole: bool = False

    @property
    def config(self) -> dict[str, Any]:
        return {
            "trial": self.trial_id,
            "block": self.block,
            "handed_over": self.handed_over,
            "whole": self.whole,
        }


def partial_block(**dimensions: Any) -> Block:
    return Block(strategy="partial", dimensions={"backbone": BACKBONE, **dimensions})


def scheduler_of(
    folder: Path, flags: Flags, *, name: str = "asha", clock_s: list[float] | None = None
) -> FlaggingScheduler:
    block = partial_block(warm_up_epochs=Constant(value=2), epochs=Constant(value=9))
    spec = SweepSpec.model_validate(
        {
            "name": "s",
            "task": "image-classification",
            "data": {"train": "/data"},
            "search": [block, block],
            "tuner": {"scheduler": name},
        }
    )
    now = clock_s if clock_s is not None else [0.0]
    clock = SweepClock(SweepFolder(folder), minutes=1.0, clock=lambda: now[0])
    return FlaggingScheduler(spec, flags, clock)  # type: ignore[arg-type]


def told(scheduler: FlaggingScheduler, trial: Running, epoch: int, objective: float) -> str:
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, "objective": objective})  # type: ignore[arg-type]


def added(scheduler: FlaggingScheduler, *trials: Running) -> None:
    for trial in trials:
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]


def test_a_trial_is_never_killed_only_flagged(tmp_path: Path) -> None:
    flags = Flags()
    scheduler = scheduler_of(tmp_path, flags)
    trials = [Running(str(n)) for n in range(6)]
    added(scheduler, *trials)
    answers = [told(scheduler, t, 3, 0.9 - 0.1 * n) for n, t in enumerate(trials)]
    assert set(answers) == {TrialScheduler.CONTINUE}
    assert flags.raised == {t.trial_id: "asha" for t in trials[1:]}


def test_nothing_is_flagged_during_the_head_warm_up(tmp_path: Path) -> None:
    flags = Flags()
    scheduler = scheduler_of(tmp_path, flags)
    good, bad = Running("good"), Running("bad")
    added(scheduler, good, bad)
    for epoch in (1, 2):
        told(scheduler, good, epoch, 0.9)
        told(scheduler, bad, epoch, 0.1)
    assert flags.raised == {}
    told(scheduler, good, 3, 0.9)
    told(scheduler, bad, 3, 0.1)
    assert flags.raised == {"bad": "asha"}


def test_a_trial_that_starts_from_a_trained_head_meets_its_first_rung_at_once(
    tmp_path: Path,
) -> None:
    flags = Flags()
    scheduler = scheduler_of(tmp_path, flags)
    warmed, handed = Running("warmed"), Running("handed", handed_over=True)
    added(scheduler, warmed, handed)
    told(scheduler, warmed, 3, 0.9)
    told(scheduler, handed, 1, 0.1)
    assert flags.raised == {"handed": "asha"}


def test_blocks_do_not_compete_for_rungs(tmp_path: Path) -> None:
    flags = Flags()
    scheduler = scheduler_of(tmp_path, flags)
    strong, weak = Running("strong", 0), Running("weak", 1)
    added(scheduler, strong, weak)
    told(scheduler, strong, 3, 0.9)
    told(scheduler, weak, 3, 0.1)
    assert flags.raised == {}


def test_the_deadline_flags_every_running_trial(tmp_path: Path) -> None:
    flags, now = Flags(), [0.0]
    scheduler = scheduler_of(tmp_path, flags, name="none", clock_s=now)
    trial = Running("t")
    added(scheduler, trial)
    told(scheduler, trial, 1, 0.5)
    assert flags.raised == {}
    now[0] = 61.0
    told(scheduler, trial, 2, 0.5)
    assert flags.raised == {"t": "budget"}


def test_the_median_rule_flags_and_never_pauses(tmp_path: Path) -> None:
    flags = Flags()
    scheduler = scheduler_of(tmp_path, flags, name="median")
    trials = [Running(str(n)) for n in range(5)]
    added(scheduler, *trials)
    for epoch in (1, 2, 3, 4):
        for n, trial in enumerate(trials):
            if trial.trial_id not in flags.raised:
                assert told(scheduler, trial, epoch, 0.9 - 0.2 * n) == TrialScheduler.CONTINUE
    assert set(flags.raised.values()) == {"median"}
    assert "0" not in flags.raised


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [
        ({}, 6),
        ({"warm_up_epochs": Constant(value=2)}, 3),
        ({"warm_up_epochs": Choice(values=(0, 4))}, 5),
    ],
)
def test_the_first_rung_follows_the_longest_warm_up(
    dimensions: dict[str, Any], expected: int
) -> None:
    assert first_rung(partial_block(**dimensions)) == expected


def test_a_default_that_a_gain_is_measured_by_is_stopped_by_the_deadline_alone(
    tmp_path: Path,
) -> None:
    flags, now = Flags(), [0.0]
    scheduler = scheduler_of(tmp_path, flags, clock_s=now)
    good, whole = Running("good"), Running("whole", whole=True)
    added(scheduler, good, whole)
    told(scheduler, good, 3, 0.9)
    told(scheduler, whole, 3, 0.1)
    assert flags.raised == {}
    now[0] = 61.0
    told(scheduler, whole, 4, 0.1)
    assert flags.raised == {"whole": "budget"}
