"""Intervals agree with references, and paired ones see what unpaired ones miss."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.report.association import rank_correlation, stands_out
from orchestrator.report.intervals import Gain, Interval, interval_of, paired_gain
from orchestrator.report.predictions import Predictions
from orchestrator.spec.parts import ObjectiveSpec, TaskSpec
from orchestrator.tasks.metrics import multi_label_metrics, single_label_metrics, wilson_interval

METRICS = ["accuracy", "f1_macro", "roc_auc", "log_loss", "ece"]


def answers(skill: float, *, n: int = 300, multi: bool = False, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    kind = "image-multilabel-classification" if multi else "image-classification"
    task = TaskSpec.model_validate({"kind": kind, "labels": ("a", "b", "c")})
    hot = np.eye(3, dtype=np.int64)[rng.integers(0, 3, n)]
    logits = skill * hot + rng.normal(0, 1, (n, 3))
    exp = np.exp(logits)
    probs = 1 / (1 + np.exp(1 - logits)) if multi else exp / exp.sum(axis=1, keepdims=True)
    truth = hot if multi else hot.argmax(axis=1)
    return Predictions("validation", task, np.arange(n), probs, truth, ("",) * n)


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_an_interval_holds_the_metric_of_the_task(metric, multi):
    given = answers(1.5, multi=multi)
    reference = multi_label_metrics if multi else single_label_metrics
    point = reference(given.probs, given.truth)[metric]
    found = interval_of(given, metric)
    slack = 0.02 if metric == "ece" else 0.0  # resampling biases ECE upwards
    assert found.low - slack <= point <= found.high
    assert 0.005 < found.high - found.low < 0.4


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_a_gain_is_the_difference_of_the_task_s_metrics(metric, multi):
    ours, theirs = answers(2.0, multi=multi), answers(1.0, multi=multi)
    reference = multi_label_metrics if multi else single_label_metrics
    mode = "min" if metric in {"log_loss", "ece"} else "max"
    sign = -1 if mode == "min" else 1
    expected = sign * (
        reference(ours.probs, ours.truth)[metric] - reference(theirs.probs, theirs.truth)[metric]
    )
    gain = paired_gain(ours, theirs, ObjectiveSpec.model_validate({"metric": metric, "mode": mode}))
    assert gain.value == pytest.approx(expected, abs=1e-9)


def test_accuracy_has_wilson_s_interval():
    given = answers(1.5)
    hits = int((given.probs.argmax(axis=1) == given.truth).sum())
    found = interval_of(given, "accuracy")
    assert (found.low, found.high) == wilson_interval(hits, len(given))


def test_a_model_does_not_gain_over_itself():
    given = answers(1.0)
    gain = paired_gain(given, given, ObjectiveSpec(metric="f1_macro"))
    assert gain == Gain(0.0, Interval(0.0, 0.0))
    assert not gain.clear


def test_examples_are_paired_by_their_number_not_their_row():
    ours, theirs = answers(2.0), answers(1.0)
    turned = Predictions(
        theirs.split, theirs.task, theirs.examples[::-1], theirs.probs[::-1],
        theirs.truth[::-1], theirs.uris,
    )  # fmt: skip
    goal = ObjectiveSpec(metric="accuracy")
    assert paired_gain(ours, turned, goal).value == paired_gain(ours, theirs, goal).value


def test_no_common_examples_have_no_gain():
    ours, theirs = answers(2.0), answers(1.0)
    apart = Predictions(
        theirs.split, theirs.task, theirs.examples + 1000, theirs.probs, theirs.truth, theirs.uris
    )
    assert paired_gain(ours, apart, ObjectiveSpec()) is None


def test_rank_correlation_is_spearman_s():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(3)
    xs, ys = rng.integers(0, 6, 30).tolist(), rng.normal(0, 1, 30).tolist()
    assert rank_correlation(xs, ys) == pytest.approx(spearmanr(xs, ys).statistic)
    assert rank_correlation([1.0] * 9, ys[:9]) is None
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None


def test_few_trials_need_a_stronger_correlation_to_stand_out():
    assert not stands_out(0.6, 7)
    assert stands_out(0.6, 40)
    assert not stands_out(None, 40)
