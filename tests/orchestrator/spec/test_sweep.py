"""A SweepSpec: what identifies a sweep, and what its sections refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.spec.parts import ObjectiveSpec
from orchestrator.spec.sweep import SweepSpec

Parse = Callable[[Any], SweepSpec]
Make = Callable[..., dict[str, Any]]

SEARCH: list[dict[str, Any]] = [
    {"strategy": "feature-extraction", "backbone": "resnet18", "head_lr": {"log": [1e-3, 1e-2]}},
    {"strategy": "partial", "backbone": ["resnet18", "tf_efficientnet_lite0"], "unfreeze": [1, 2]},
    {"strategy": "full", "backbone": "resnet18", "thirds": [[0.1, 0.2, 1], [1, 1, 1]]},
]


@pytest.mark.parametrize(
    "change",
    [
        {"budget": {"trials": 99, "minutes": 5}},
        {"workers": {"per_trial": 4, "cpus": 2, "gpus": 1}},
        {"tracking": {"mlflow": "http://server:5000"}},
        {"storage": "elsewhere"},
        {"name": "other"},
        {"search": SEARCH[::-1]},
        {"search": [dict(reversed(list(item.items()))) for item in SEARCH]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_change_the_questions_keeps_the_identity(
    raw: Make, parse: Parse, change: dict[str, Any]
) -> None:
    first = parse(raw(search=SEARCH))

    assert parse(raw(**{"search": SEARCH, **change})).identity("d") == first.identity("d")


@pytest.mark.parametrize(
    "change",
    [
        {"task": "image-multilabel-classification"},
        {"search": SEARCH[:2]},
        {"search": [{**SEARCH[0], "head_lr": {"log": [1e-3, 2e-2]}}, *SEARCH[1:]]},
        {"search": [{**SEARCH[0], "head_lr": {"uniform": [1e-3, 1e-2]}}, *SEARCH[1:]]},
        {"search": [{**SEARCH[0], "dropout": 0.1}, *SEARCH[1:]]},
        {"search": [SEARCH[0], {**SEARCH[1], "backbone": "resnet18"}, SEARCH[2]]},
        {"search": [*SEARCH[:2], {**SEARCH[2], "thirds": [0.1, 0.2, 1]}]},
        {"objective": {"metric": "accuracy"}},
        {"defaults": {"seed": 1}},
        {"defaults": {"epochs": 3}},
    ],
    ids=str,
)
def test_what_changes_the_questions_changes_the_identity(
    raw: Make, parse: Parse, change: dict[str, Any]
) -> None:
    first = parse(raw(search=SEARCH))

    assert parse(raw(**{"search": SEARCH, **change})).identity("d") != first.identity("d")


def test_other_data_is_another_sweep(raw: Make, parse: Parse) -> None:
    spec = parse(raw(search=SEARCH))

    assert spec.identity("d") != spec.identity("e")


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"search": SEARCH},
        {"workers": {"per_trial": {"elastic": [1, 4]}}, "budget": {"trials": None, "minutes": 3}},
        {"objective": {"metric": "ece"}, "tracking": {"mlflow": "sqlite:///x.db"}},
        {"data": {"train": "s3://b/a.csv", "validation": "v", "test": "hub:a/b"}},
    ],
    ids=str,
)
def test_a_resolved_spec_read_back_is_equal(
    raw: Make, parse: Parse, sections: dict[str, Any]
) -> None:
    spec = parse(raw(**sections))
    again = SweepSpec.model_validate(json.loads(json.dumps(spec.to_json())))

    assert again == spec
    assert again.identity("d") == spec.identity("d")


@pytest.mark.parametrize("name", ["", "-a", "a b", "A", "a/b", "..", "a\n", "é", "a" * 65])
def test_a_name_that_makes_no_good_folder_is_refused(
    raw: Make, faults: Callable[[Any], dict[str, str]], name: str
) -> None:
    assert list(faults(raw(name=name))) == ["name"]


@pytest.mark.parametrize("name", ["a", "0", "solar-cells_2.1", "a" * 64])
def test_a_name_that_makes_a_good_folder_is_taken(raw: Make, parse: Parse, name: str) -> None:
    assert parse(raw(name=name)).name == name


def test_the_mode_follows_the_metric(raw: Make, parse: Parse) -> None:
    modes = {
        metric: parse(raw(objective={"metric": metric})).objective.mode
        for metric in ("accuracy", "f1_macro", "roc_auc", "log_loss", "ece")
    }

    assert modes == {
        "accuracy": "max",
        "f1_macro": "max",
        "roc_auc": "max",
        "log_loss": "min",
        "ece": "min",
    }


def test_better_is_strict_and_everything_beats_nothing() -> None:
    high, low = ObjectiveSpec(), ObjectiveSpec(metric="log_loss", mode="min")

    assert high.better(0.5, 0.4)
    assert not high.better(0.4, 0.4)
    assert low.better(0.3, 0.4)
    assert not low.better(0.4, 0.4)
    assert high.better(0.0, None)
    assert low.better(9.0, None)


def test_the_worst_value_beats_no_metric() -> None:
    assert not ObjectiveSpec().better(ObjectiveSpec().worst, 0.0)
    lowest = ObjectiveSpec(metric="log_loss", mode="min")
    assert not lowest.better(lowest.worst, 16.2), "a log loss ends at -log(1e-7)"


def test_the_most_workers_of_a_trial_are_known(raw: Make, parse: Parse) -> None:
    assert parse(raw(workers={"per_trial": 3})).workers.most == 3
    assert parse(raw(workers={"per_trial": {"elastic": [1, 4]}})).workers.most == 4
