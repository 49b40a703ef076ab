"""Which head a fine-tuning experiment starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runtime.folders import SweepFolder, TrialStart
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.record import Record
from orchestrator.training.bank import can_join
from orchestrator.training.phases import compile_phases
from orchestrator.tuning.experiments import ExperimentFactory
from orchestrator.tuning.handing_over import HandOver, head_key, planned, warm_up_head
from tests.orchestrator.tuning.test_sharing import HEAD, PARTIAL, factory_of, spec_of


def experiment_of(block: dict[str, Any]) -> tuple[Experiment, ExperimentFactory]:
    spec = spec_of([block])
    factory = factory_of(spec)
    return factory.make(spec.search[0], spec.search[0].vetted()), factory


def ended(experiment: Experiment, objective: float, status: str = "finished") -> Record:
    return Record.model_validate(
        {
            "trial": experiment.id,
            "status": status,
            "experiment": experiment,
            "attempts": 1,
            "objective": objective,
            "checkpoint": "checkpoints/epoch-0001",
            "seconds": 1.0,
            "images_per_s": 1.0,
            "peak_memory_bytes": 0,
            "started_at": "2026-01-01T00:00:00+00:00",
        }
    )


def test_the_best_head_that_fits_is_the_parent_and_spares_the_warm_up() -> None:
    spec = spec_of([HEAD, PARTIAL])
    factory = factory_of(spec)
    heads, tuned = spec.search
    records = [
        ended(factory.make(heads, {**heads.vetted(), "head_lr": rate}), value)
        for rate, value in ((1e-3, 0.7), (2e-3, 0.9), (3e-3, 0.8))
    ]
    hand_over = HandOver()
    hand_over.name_best(records, hand_over.lacking(spec.search, factory).keys())
    child = hand_over.child(tuned, factory.make(tuned, tuned.vetted()), default=True)
    assert child.parents == {"head": records[1].experiment.digest}
    assert child.id != factory.make(tuned, tuned.vetted()).id
    assert [p.name for p in compile_phases(child.strategy, 5, handed_over=True)] == ["partial"]
    assert hand_over.lacking(spec.search, factory) == {}


def test_a_twin_starts_from_its_own_warm_up_and_not_from_a_searched_head() -> None:
    spec = spec_of([HEAD, PARTIAL])
    factory = factory_of(spec)
    heads, tuned = spec.search
    twin = tuned.model_copy(update={"twin_of": "d" * 64})
    default = factory.make(twin, twin.vetted())
    hand_over = HandOver()
    searched = ended(factory.make(heads, {**heads.vetted(), "head_lr": 2e-3}), 0.9)
    hand_over.name_best([searched], hand_over.lacking([twin], factory).keys())
    (own,) = hand_over.lacking([twin], factory).values()
    assert own == warm_up_head(default)
    hand_over.name_best([ended(own, 0.7)], hand_over.lacking([twin], factory).keys())
    parent = searched.experiment.digest
    assert hand_over.child(twin, default, default=True).parents == {"head": own.digest}
    assert hand_over.child(twin, default, default=False).parents == {"head": parent}
    assert hand_over.child(tuned, default, default=True).parents == {"head": parent}


def test_a_better_head_that_comes_later_changes_nobody(tmp_path: Path) -> None:
    spec = spec_of([HEAD, PARTIAL])
    factory = factory_of(spec)
    heads, tuned = spec.search
    folder = SweepFolder(tmp_path)
    first, later = (
        ended(factory.make(heads, {**heads.vetted(), "head_lr": rate}), value)
        for rate, value in ((1e-3, 0.7), (2e-3, 0.9))
    )
    hand_over = HandOver()
    hand_over.name_best([first], hand_over.lacking(spec.search, factory).keys())
    folder.write("plan.json", {"trials": 1, "heads": hand_over.to_json()})
    folder.write("plan.json", planned(folder, {"trials": 2}))
    assert json.loads((tmp_path / "plan.json").read_bytes())["heads"] == hand_over.to_json()
    # A head whose folder is gone is named no more.
    assert HandOver.of_plan(folder).to_json() == []
    trial = folder.trial(first.trial)
    trial.write_start(
        TrialStart(experiment=first.experiment, block="", searched={}, default=True, attempt=1)
    )
    trial.write_record(first)
    again = HandOver.of_plan(folder)
    again.name_best([first, later], again.lacking(spec.search, factory).keys())
    assert again.child(tuned, factory.make(tuned, tuned.vetted()), default=True).parents == {
        "head": first.experiment.digest
    }


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"dropout": 0.4, "seed": 3, "batch_size": 16}, True),
        ({"hidden": 99}, True),  # a linear head has no hidden layer
        ({"head": "mlp"}, False),
        ({"loss": "focal"}, False),
        ({"class_weights": "balanced"}, False),
        ({"pooling": "multi-scale"}, False),
        ({"image_size": 64}, False),
    ],
)
def test_shape_loss_class_weights_and_input_must_match(changes: dict[str, Any], fits: bool) -> None:
    head, _ = experiment_of(HEAD)
    tuned, _ = experiment_of(PARTIAL | changes)
    assert (head_key(head) == head_key(tuned)) is fits


@pytest.mark.parametrize("record", ["diverged", "failed"])
def test_a_head_without_a_result_is_no_parent(record: str) -> None:
    spec = spec_of([HEAD, PARTIAL])
    factory = factory_of(spec)
    bad = ended(factory.make(spec.search[0], spec.search[0].vetted()), 0.9, record)
    hand_over = HandOver()
    lacking = hand_over.lacking(spec.search, factory)
    hand_over.name_best([bad], lacking)
    assert hand_over.lacking(spec.search, factory).keys() == lacking.keys() != set()


def test_what_no_head_of_the_search_fits_is_the_warm_up_itself() -> None:
    tuned, _ = experiment_of(
        PARTIAL | {"head": "mlp", "warm_up_epochs": 3, "accumulate": 2, "ema_decay": 0.9}
    )
    head = warm_up_head(tuned)
    assert can_join(head)
    assert head_key(head) == head_key(tuned)
    (ours,) = compile_phases(head.strategy, 5)
    theirs = compile_phases(tuned.strategy, 5)[0]
    assert vars(ours) | {"name": "warm-up"} == vars(theirs)


@pytest.mark.parametrize("opted_out", [{"warm_up": "own"}, {"warm_up_epochs": 0}])
def test_a_block_with_a_warm_up_of_its_own_or_none_asks_for_no_head(
    opted_out: dict[str, Any],
) -> None:
    spec = spec_of([HEAD, PARTIAL | opted_out])
    factory = factory_of(spec)
    heads, tuned = spec.search
    hand_over = HandOver()
    assert hand_over.lacking(spec.search, factory) == {}
    record = ended(factory.make(heads, heads.vetted()), 0.9)
    hand_over.name_best([record], {head_key(record.experiment)})
    experiment = factory.make(tuned, tuned.vetted())
    assert hand_over.child(tuned, experiment, default=True) == experiment
