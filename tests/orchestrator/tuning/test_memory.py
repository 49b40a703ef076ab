"""Trials run side by side as far as memory goes; what does not fit alone is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import CapacityError
from orchestrator.spec.parsing import parse_sweep
from orchestrator.tuning.experiments import ExperimentFactory
from orchestrator.tuning.memory import TrialMemory, trial_memory, trials_that_fit
from orchestrator.tuning.planning import plan_sweep
from orchestrator.tuning.progress import Silent
from tests.orchestrator.tuning.test_sharing import HEAD, PARTIAL, factory_of, spec_of

GB = 10**9
RawSpec = Callable[..., dict[str, object]]


class Lines(Silent):
    """Keeps what a plan says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def need(gb: float) -> TrialMemory:
    return TrialMemory("a trial", process=int(gb * GB), training=0, batch=8, activations=0)


@pytest.mark.parametrize(
    ("room_gb", "n_nodes", "n_workers", "fits"),
    [(10, 1, 1, 4), (5, 1, 1, 2), (2, 1, 1, 1), (5, 2, 1, 4), (5, 2, 2, 2), (3, 2, 2, 1)],
)
def test_the_neediest_trial_decides_how_many_run_at_once(
    room_gb: float, n_nodes: int, n_workers: int, fits: int
) -> None:
    found = trials_that_fit(
        [need(1), need(2)],
        at_once=4,
        room_bytes=room_gb * GB,
        n_nodes=n_nodes,
        n_workers=n_workers,
    )
    assert found == fits


def test_what_is_not_known_limits_nothing() -> None:
    assert trials_that_fit([], at_once=4, room_bytes=1) == 4


def test_a_trial_that_fits_no_node_is_refused_with_the_arithmetic() -> None:
    told = TrialMemory(
        "a full trial of resnet18 at 224 px",
        process=GB,
        training=2 * GB,
        batch=32,
        activations=3 * GB,
    )
    with pytest.raises(CapacityError) as caught:
        trials_that_fit([told], at_once=1, room_bytes=5 * GB)
    assert str(caught.value) == (
        "budget.memory_gb: a full trial of resnet18 at 224 px needs 6.00 GB: 1.00 GB of process "
        "and weights, 2.00 GB of gradients and moments, 3.00 GB of activations for 32 examples at "
        "once. 1 node with 5.00 GB for trials cannot hold it. Lower batch_size, raise accumulate, "
        "use a smaller backbone, or give it more memory"
    )


@pytest.mark.parametrize(
    ("changes", "training", "batch"),
    [
        ({}, 12, 32),  # AdamW: gradient and two moments of four bytes
        ({"optimizer": "sgd"}, 8, 32),
        ({"ema_decay": 0.9}, 16, 32),
        ({"accumulate": 4}, 12, 8),
        ({"accumulate": 3, "batch_size": 10}, 12, 4),
    ],
)
def test_gradients_moments_and_the_part_of_a_batch_are_counted(
    changes: dict[str, Any], training: int, batch: int
) -> None:
    spec = spec_of([{**PARTIAL, **changes}])
    (block,) = spec.search
    experiment = factory_of(spec).make(block, block.vetted())
    found = trial_memory(experiment, process=7, trained=100, an_example=10.5, n_workers=1)
    assert (found.process, found.training, found.batch) == (7, 100 * training, batch)
    assert found.activations == round(10.5 * batch)
    shared = trial_memory(experiment, process=7, trained=100, an_example=10.5, n_workers=2)
    assert shared.batch == -(-batch // 2)


def test_a_plan_reduces_or_refuses_what_its_memory_cannot_hold(
    raw_spec: RawSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    plans, told = {}, {}
    for memory_gb in (1000, None):
        lines = Lines()
        budget = {"trials": 4} | ({"memory_gb": memory_gb} if memory_gb else {})
        spec = parse_sweep(raw_spec(budget=budget), base=Path.cwd())
        _, plans[memory_gb] = plan_sweep(spec, probe=True, progress=lines)
        told[memory_gb] = [line for line in lines.said if line.startswith("memory:")]
    assert (plans[1000]["at_once"], told[1000]) == (4, [])
    peak = plans[1000]["forecast"]["peak_memory_bytes"]
    assert peak > 10**8, "a process with torch takes as much"

    lines = Lines()
    budget = {"trials": 4, "memory_gb": 2.5 * peak / 1e9}
    spec = parse_sweep(raw_spec(budget=budget), base=Path.cwd())
    _, plan = plan_sweep(spec, probe=True, progress=lines)
    assert plan["at_once"] == 2
    [line] = [line for line in lines.said if line.startswith("memory:")]
    assert "2 of 4 trials run at once" in line

    spec = parse_sweep(
        raw_spec(budget={"trials": 4, "memory_gb": 0.5 * peak / 1e9}), base=Path.cwd()
    )
    with pytest.raises(CapacityError, match="cannot hold it"):
        plan_sweep(spec, probe=True, progress=Lines())


def test_a_plan_tells_or_refuses_what_its_disk_cannot_hold(
    raw_spec: RawSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = PARTIAL | {"image_size": 32, "backbone_lr": {"log": [1e-4, 1e-3]}}
    raw = raw_spec(search=[tuned], budget={"trials": 40, "store_gb": 1})
    spec = parse_sweep(raw, base=Path.cwd())
    _, plan = plan_sweep(spec, probe=True, progress=Silent())
    each = max(block["checkpoint_bytes_each"] for block in plan["blocks"])
    assert each > 10**6, "weights and moments of two stages"
    assert plan["forecast"]["checkpoint_bytes"] > 10 * each

    lines = Lines()
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("orchestrator.tuning.plan.free_bytes", lambda _: 10 * each)
    plan_sweep(spec, probe=False, progress=lines)
    assert [line for line in lines.said if "checkpoints of all trials may take" in line]

    monkeypatch.setattr("orchestrator.tuning.plan.free_bytes", lambda _: each)
    with pytest.raises(CapacityError, match=r"storage: trials write checkpoints of .* Make room"):
        plan_sweep(spec, probe=False, progress=Lines())


def test_heads_need_less_than_fine_tuning() -> None:
    spec = spec_of([HEAD, PARTIAL])
    factory: ExperimentFactory = factory_of(spec)
    head, tuned = (factory.make(block, block.vetted()) for block in spec.search)
    few = trial_memory(head, process=GB, trained=1_000, an_example=0, n_workers=1)
    many = trial_memory(tuned, process=GB, trained=10_000_000, an_example=1e6, n_workers=1)
    assert few.bytes < many.bytes
