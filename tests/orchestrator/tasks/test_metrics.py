"""Metrics agree with scikit-learn and with closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from orchestrator.tasks.metrics import (
    Floats,
    Ints,
    confusion_matrix,
    expected_calibration_error,
    multi_label_metrics,
    per_class_rows,
    reliability_bins,
    roc_auc_by_class,
    single_label_metrics,
    wilson_interval,
)


def drawn(n: int, n_classes: int, *, seed: int, sharpness: float = 1.5) -> tuple[Floats, Ints]:
    """Probabilities [N, C] that know a little about the true classes [N]."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, n)
    logits = rng.normal(size=(n, n_classes)) + sharpness * np.eye(n_classes)[truth]
    probs = np.exp(logits)
    return probs / probs.sum(axis=1, keepdims=True), truth


@pytest.mark.parametrize(("n", "n_classes"), [(2, 2), (40, 2), (300, 3), (500, 12)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_single_label_metrics_are_those_of_scikit_learn(n: int, n_classes: int, seed: int) -> None:
    probs, truth = drawn(n, n_classes, seed=seed)
    truth[:n_classes] = range(n_classes)
    found = single_label_metrics(probs, truth)
    predicted = probs.argmax(axis=1)

    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    assert found["log_loss"] == pytest.approx(sk.log_loss(truth, probs))
    area = (
        sk.roc_auc_score(truth, probs[:, 1])
        if n_classes == 2
        else sk.roc_auc_score(truth, probs, multi_class="ovr", average="macro")
    )
    assert found["roc_auc"] == pytest.approx(area)


def test_a_class_that_is_absent_and_never_predicted_is_no_part_of_f1() -> None:
    probs, truth = drawn(200, 5, seed=3)
    probs[:, 4], truth = 0, truth % 3
    predicted = probs.argmax(axis=1)
    found = single_label_metrics(probs, truth)["f1_macro"]

    assert 4 not in predicted
    assert 3 in predicted, "a class that is only predicted counts, with an F1 of 0"
    assert found == pytest.approx(sk.f1_score(truth, predicted, average="macro"))


def test_a_class_missing_in_the_truth_has_no_area_and_is_left_out_of_the_mean() -> None:
    probs, truth = drawn(200, 4, seed=4)
    truth = np.where(truth == 3, 0, truth)
    areas = roc_auc_by_class(probs, np.eye(4, dtype=int)[truth])

    expected = [sk.roc_auc_score(truth == c, probs[:, c]) for c in range(3)]
    assert areas[:3] == pytest.approx(expected)
    assert areas[3] is None
    assert single_label_metrics(probs, truth)["roc_auc"] == pytest.approx(np.mean(expected))


def test_an_undefined_area_is_left_out_rather_than_nan() -> None:
    probs, _ = drawn(20, 3, seed=5)
    found = single_label_metrics(probs, np.zeros(20, dtype=np.int64))

    assert "roc_auc" not in found
    assert all(np.isfinite(value) for value in found.values())


def test_a_sure_mistake_has_a_finite_log_loss() -> None:
    found = single_label_metrics(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 1]))

    assert found["log_loss"] == pytest.approx(-np.log(1e-7) / 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_multi_label_metrics_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = (rng.random((150, 6)) < 0.3).astype(np.uint8)
    probs = np.clip(0.4 * truth + 0.6 * rng.random((150, 6)), 0.01, 0.99)
    found = multi_label_metrics(probs, truth)
    predicted = (probs >= 0.5).astype(int)

    assert found["accuracy"] == pytest.approx(1 - sk.hamming_loss(truth, predicted))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(truth, probs, average="macro"))
    each = [sk.log_loss(truth[:, c], probs[:, c], labels=[0, 1]) for c in range(6)]
    assert found["log_loss"] == pytest.approx(np.mean(each))


def test_a_label_that_never_occurs_is_left_out_of_multi_label_averages() -> None:
    rng = np.random.default_rng(2)
    truth = (rng.random((80, 4)) < 0.4).astype(int)
    truth[:, 3] = 0
    probs = rng.random((80, 4)) * [1, 1, 1, 0.4]
    found = multi_label_metrics(probs, truth)
    predicted = (probs >= 0.5).astype(int)

    expected = sk.f1_score(truth, predicted, average="macro", zero_division=np.nan)
    assert found["f1_macro"] == pytest.approx(expected)
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(truth[:, :3], probs[:, :3]))


def test_the_table_by_class_is_that_of_scikit_learn() -> None:
    probs, truth = drawn(300, 5, seed=6)
    truth = np.where(truth == 4, 1, truth)
    probs[:, 3] = 0
    predicted, eye = probs.argmax(axis=1), np.eye(5, dtype=int)
    rows = per_class_rows(eye[predicted], eye[truth], probs, list("abcde"))

    columns = sk.precision_recall_fscore_support(truth, predicted, labels=range(5), zero_division=0)
    assert [row["label"] for row in rows] == list("abcde")
    for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert [row[name] for row in rows] == pytest.approx(column)
    assert rows[4]["roc_auc"] is None
    assert rows[0]["roc_auc"] == pytest.approx(sk.roc_auc_score(truth == 0, probs[:, 0]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_the_confusion_matrix_is_that_of_scikit_learn(dtype: type[np.integer]) -> None:
    probs, truth = drawn(400, 20, seed=7)
    predicted = probs.argmax(axis=1)
    found = confusion_matrix(predicted.astype(dtype), truth.astype(dtype), 21)

    assert (found == sk.confusion_matrix(truth, predicted, labels=range(21))).all()


def test_calibration_error_of_two_bins_in_closed_form() -> None:
    # 10 answers at 0.9, 6 right: gap 0.3; 30 at 0.6, 24 right: gap 0.2.
    confidence = np.array([0.9] * 10 + [0.6] * 30)
    correct = np.array([True] * 6 + [False] * 4 + [True] * 24 + [False] * 6)

    assert expected_calibration_error(confidence, correct) == pytest.approx(
        (10 * 0.3 + 30 * 0.2) / 40
    )


def test_calibration_error_is_0_for_the_honest_and_1_for_the_surely_wrong() -> None:
    sure = np.ones(8)

    assert expected_calibration_error(sure, np.ones(8, bool)) == 0
    assert expected_calibration_error(sure, np.zeros(8, bool)) == 1
    assert expected_calibration_error(np.full(8, 0.5), np.arange(8) % 2 == 0) == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_is_its_definition(answers: list[tuple[float, bool]]) -> None:
    confidence = np.array([a for a, _ in answers])
    correct = np.array([b for _, b in answers])
    expected = 0.0
    for b in range(15):
        chosen = [i for i, (a, _) in enumerate(answers) if min(int(a * 15), 14) == b]
        if chosen:
            gap = abs(sum(correct[chosen]) / len(chosen) - sum(confidence[chosen]) / len(chosen))
            expected += gap * len(chosen) / len(answers)

    found = expected_calibration_error(confidence, correct)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0 <= found <= 1
    assert sum(row["count"] for row in reliability_bins(confidence, correct)) == len(answers)


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [
        # Newcombe, Statistics in Medicine 1998, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_intervals_are_the_published_ones(
    successes: int, n: int, interval: tuple[float, float]
) -> None:
    assert wilson_interval(successes, n) == pytest.approx(interval, abs=5e-5)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_a_wilson_interval_holds_its_proportion_and_mirrors(a: int, b: int) -> None:
    low, high = wilson_interval(a, a + b)
    mirrored = wilson_interval(b, a + b)

    assert 0 <= low <= high <= 1
    if a + b:
        assert low - 1e-12 <= a / (a + b) <= high + 1e-12
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)
