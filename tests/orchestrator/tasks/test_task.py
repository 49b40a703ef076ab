"""A Task at work: logits to probabilities, probabilities to answers."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from orchestrator.spec.parts import TaskSpec
from orchestrator.tasks.task import MultiLabel, SingleLabel, build_task

SINGLE = TaskSpec(kind="image-classification", labels=("a", "b", "c"))
MULTI = TaskSpec(kind="image-multilabel-classification", labels=("a", "b", "c"))


def test_each_kind_has_its_task() -> None:
    assert isinstance(build_task(SINGLE), SingleLabel)
    assert isinstance(build_task(MULTI), MultiLabel)
    assert build_task(SINGLE).n_outputs == build_task(MULTI).n_outputs == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_probabilities_are_those_of_torch(dtype: type[np.floating], scale: float) -> None:
    logits = (scale * np.random.default_rng(0).normal(size=(50, 3))).astype(dtype)
    tensor = torch.from_numpy(logits).double()

    single = build_task(SINGLE).probabilities(logits)
    multi = build_task(MULTI).probabilities(logits)

    relative = 1e-4 if dtype is np.float32 else 1e-9
    assert single == pytest.approx(tensor.softmax(dim=1).numpy(), rel=relative, abs=1e-30)
    assert multi == pytest.approx(tensor.sigmoid().numpy(), rel=relative, abs=1e-30)
    assert single.dtype == multi.dtype == dtype


@pytest.mark.parametrize("spec", [SINGLE, MULTI])
def test_huge_logits_give_finite_probabilities(spec: TaskSpec) -> None:
    logits = np.array([[1e30, -1e30, 0.0], [-1e30, -1e30, -1e30]], np.float32)

    probs = build_task(spec).probabilities(logits)

    assert np.isfinite(probs).all()
    assert probs[0, 0] == 1
    assert ((probs >= 0) & (probs <= 1)).all()


def test_rare_labels_keep_their_order_in_float32() -> None:
    logits = np.array([[-20.0, -30.0, -40.0]], np.float32)
    [probs] = build_task(MULTI).probabilities(logits)

    assert probs[0] > probs[1] > probs[2] > 0


def test_a_single_label_answer_is_the_likeliest_with_the_top_ones() -> None:
    answer = build_task(SINGLE).answer(np.array([0.2, 0.7, 0.1]), top=2)

    assert answer == {"label": "b", "probabilities": {"b": 0.7, "a": 0.2}}
    assert list(answer["probabilities"]) == ["b", "a"]
    assert len(build_task(SINGLE).answer(np.array([0.2, 0.7, 0.1]), top=9)["probabilities"]) == 3


def test_a_tie_goes_to_the_first_label() -> None:
    assert build_task(SINGLE).answer(np.array([0.2, 0.4, 0.4]), top=1)["label"] == "b"


def test_a_multi_label_answer_has_every_label_from_the_threshold_on() -> None:
    probs = np.array([0.5, 0.2, 0.9])

    assert build_task(MULTI).answer(probs, top=1) == {
        "labels": ["c", "a"],
        "probabilities": {"c": 0.9},
    }
    assert MultiLabel(MULTI, threshold=0.95).answer(probs, top=1)["labels"] == []


def test_correct_means_wholly_right() -> None:
    probs = np.array([[0.9, 0.1, 0.0], [0.1, 0.2, 0.7], [0.6, 0.6, 0.2]])
    truth = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0]], np.uint8)

    assert build_task(SINGLE).correct(probs, np.array([0, 2, 1])).tolist() == [1, 1, 0]
    assert build_task(MULTI).correct(probs, truth).tolist() == [1, 0, 1]


@pytest.mark.parametrize("spec", [SINGLE, MULTI])
def test_details_are_plain_json_that_agrees_with_the_metrics(spec: TaskSpec) -> None:
    rng = np.random.default_rng(0)
    task = build_task(spec)
    probs = task.probabilities(rng.normal(size=(60, 3)))
    truth = (
        rng.integers(0, 3, 60) if spec is SINGLE else (rng.random((60, 3)) < 0.5).astype(np.uint8)
    )
    details = task.details(probs, truth)
    metrics = task.metrics(probs, truth)

    json.dumps(details, allow_nan=False)
    rows = details["per_class"]
    assert metrics["f1_macro"] == pytest.approx(np.mean([row["f1"] for row in rows]))
    assert metrics["roc_auc"] == pytest.approx(np.mean([row["roc_auc"] for row in rows]))
    if spec is SINGLE:
        assert np.trace(details["confusion"]) == metrics["accuracy"] * 60
        assert task.correct(probs, truth).mean() == metrics["accuracy"]
    gaps = [
        row["count"] * abs(row["accuracy"] - row["confidence"]) for row in details["reliability"]
    ]
    n = sum(row["count"] for row in details["reliability"])
    assert metrics["ece"] == pytest.approx(sum(gaps) / n)


def test_answers_and_metrics_need_no_torch() -> None:
    code = (
        "import sys, orchestrator.tasks.task, orchestrator.tasks.metrics; "
        "print({'torch', 'sklearn', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
