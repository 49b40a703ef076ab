"""An Experiment's digest covers what decides the result, and nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from orchestrator.spec.experiment import Experiment
from orchestrator.spec.frozen import canonical_json, digest_of

CONTENT: dict[str, Any] = {
    "task": {"kind": "image-classification", "labels": ["a", "b"]},
    "data_digest": "d" * 64,
    "backbone": {"name": "resnet18", "weights": "default"},
    "weights_digest": "w" * 64,
    "input": {"size": 224, "crop_fraction": 0.95, "mean": [0.5] * 3, "std": [0.25] * 3},
    "strategy": {"strategy": "partial", "unfreeze": 2},
    "objective": {"metric": "accuracy", "mode": "max"},
    "parents": {"head": "1" * 64, "weights": "2" * 64},
}


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate({**CONTENT, **changes})


def test_equal_data_has_the_same_digest_whatever_the_order_of_keys() -> None:
    turned = json.loads(json.dumps(CONTENT), object_pairs_hook=lambda p: dict(reversed(p)))

    assert list(turned) != list(CONTENT)
    assert Experiment.model_validate(turned).digest == experiment().digest


def test_an_experiment_read_back_is_the_same_experiment() -> None:
    first = experiment()
    again = Experiment.model_validate(json.loads(json.dumps(first.to_json())))

    assert first.digest == again.digest
    assert first == again
    assert again.id == again.digest[:12]


def test_the_place_of_the_weights_file_does_not_decide_the_result() -> None:
    places = ["default", "/a/b.pth", "/c/b.safetensors", "hub:x/y"]
    digests = {
        experiment(backbone={"name": "resnet18", "weights": place}).digest for place in places
    }

    assert len(digests) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"task": {"kind": "image-classification", "labels": ["b", "a"]}},
        {"task": {"kind": "image-multilabel-classification", "labels": ["a", "b"]}},
        {"data_digest": "e" * 64},
        {"backbone": {"name": "resnet34", "weights": "default"}},
        {"weights_digest": "v" * 64},
        {"input": {**CONTENT["input"], "size": 192}},
        {"strategy": {"strategy": "partial", "unfreeze": 3}},
        {"strategy": {"strategy": "partial", "unfreeze": 2, "seed": 1}},
        {"strategy": {"strategy": "partial", "unfreeze": 2, "batch_size": 33}},
        {"strategy": {"strategy": "full"}},
        {"objective": {"metric": "log_loss", "mode": "min"}},
        {"parents": {"head": "1" * 64}},
        {"parents": {"head": "2" * 64, "weights": "1" * 64}},
    ],
    ids=str,
)
def test_all_that_decides_the_result_changes_the_digest(change: dict[str, Any]) -> None:
    assert experiment(**change).digest != experiment().digest


def test_a_default_that_is_written_out_changes_nothing() -> None:
    written = {"strategy": "partial", "unfreeze": 2, "epochs": 15, "head": "linear"}

    assert experiment(strategy=written).digest == experiment().digest


def test_a_digest_is_sha256_of_sorted_compact_json() -> None:
    value = {"b": [1, 2.5, None], "a": "é"}

    assert canonical_json(value) == '{"a":"é","b":[1,2.5,null]}'.encode()
    assert digest_of(value) == hashlib.sha256('{"a":"é","b":[1,2.5,null]}'.encode()).hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of(float("nan"))
