"""Metrics of a classifier, from probabilities and true labels. No torch.

Undefined values (an AUC of a class that never occurs) are left out of averages; when nothing is
defined the metric is left out of the result, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]

ECE_BINS = 15
_TINY = 1e-7


def soft_max(logits: Floats) -> Floats:
    """Logits [..., C] to probabilities that sum to 1."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return probs


def roc_auc_by_class(probs: Floats, truth: Ints) -> list[float | None]:
    """One-vs-rest area under the ROC curve of each class; None where a class has one value only.

    By the Mann-Whitney statistic, all classes at once: scikit-learn's function, called for each
    class and epoch, took longer than training a head.

    Args:
        probs: [N, C].
        truth: 0/1 [N, C].
    """
    from scipy.stats import rankdata

    positive = truth.sum(axis=0).astype(np.float64)
    negative = len(truth) - positive
    ranks = (rankdata(probs, axis=0) * truth).sum(axis=0)
    pairs = positive * negative
    wins = ranks - positive * (positive + 1) / 2
    return [float(w / p) if p else None for w, p in zip(wins, pairs, strict=True)]


def expected_calibration_error(confidence: Floats, correct: npt.NDArray[np.bool_]) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their counts.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2.
    """
    gap = sum(
        abs(row["accuracy"] - row["confidence"]) * row["count"]
        for row in reliability_bins(confidence, correct)
    )
    return float(gap / max(1, len(confidence)))


def reliability_bins(
    confidence: Floats, correct: npt.NDArray[np.bool_], *, n_bins: int = ECE_BINS
) -> list[dict[str, float]]:
    """Mean confidence, accuracy and count of each non-empty confidence bin."""
    index = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    rows = []
    for b in range(n_bins):
        chosen = index == b
        if chosen.any():
            rows.append(
                {
                    "confidence": float(confidence[chosen].mean()),
                    "accuracy": float(correct[chosen].mean()),
                    "count": float(chosen.sum()),
                }
            )
    return rows


def confusion_matrix(predicted: Ints, truth: Ints, n_classes: int) -> npt.NDArray[np.int64]:
    """Counts [C, C]: row is the true class, column the predicted one."""
    cell = truth.astype(np.int64) * n_classes + predicted
    flat = np.bincount(cell, minlength=n_classes * n_classes)
    return flat.reshape(n_classes, n_classes)


def per_class_rows(
    predicted: Ints, truth: Ints, probs: Floats, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Precision, recall, F1, AUC and support of every class.

    Args:
        predicted: 0/1 [N, C].
        truth: 0/1 [N, C].
        probs: [N, C].
        labels: C names.
    """
    auc = roc_auc_by_class(probs, truth)
    rows: list[dict[str, Any]] = []
    for c, label in enumerate(labels):
        hits = int((predicted[:, c] & truth[:, c]).sum())
        n_predicted, support = int(predicted[:, c].sum()), int(truth[:, c].sum())
        precision = hits / n_predicted if n_predicted else 0.0
        recall = hits / support if support else 0.0
        f1 = 2 * hits / (n_predicted + support) if n_predicted + support else 0.0
        rows.append(
            {
                "label": label,
                "precision": precision,
                "recall": recall,
                "f1": f1,
                "roc_auc": auc[c],
                "support": support,
            }
        )
    return rows


def single_label_metrics(probs: Floats, truth: Ints) -> dict[str, float]:
    """accuracy, f1_macro, roc_auc, log_loss and ece of a single-label classifier.

    Args:
        probs: [N, C], rows sum to 1.
        truth: class numbers [N].
    """
    n_classes = probs.shape[1]
    predicted = probs.argmax(axis=1)
    one_hot = np.eye(n_classes, dtype=np.int64)[truth]
    correct = predicted == truth
    result = {
        "accuracy": float(correct.mean()),
        "f1_macro": _f1_macro(np.eye(n_classes, dtype=np.int64)[predicted], one_hot),
        "log_loss": float(-np.log(np.clip(probs[np.arange(len(truth)), truth], _TINY, 1)).mean()),
        "ece": expected_calibration_error(probs.max(axis=1), correct),
    }
    return result | _mean_auc(probs, one_hot)


def multi_label_metrics(probs: Floats, truth: Ints) -> dict[str, float]:
    """The same five for independent labels, each answered yes at a probability of one half.

    Args:
        probs: [N, C].
        truth: 0/1 [N, C].

    Returns:
        `accuracy` is the share of (example, label) pairs answered rightly; `log_loss` is the mean
        binary cross-entropy over pairs; `ece` compares each label's probability with its truth.
    """
    predicted = (probs >= 0.5).astype(np.int64)
    clipped = np.clip(probs, _TINY, 1 - _TINY)
    result = {
        "accuracy": float((predicted == truth).mean()),
        "f1_macro": _f1_macro(predicted, truth),
        "log_loss": float(-np.where(truth == 1, np.log(clipped), np.log1p(-clipped)).mean()),
        "ece": expected_calibration_error(probs.ravel(), truth.ravel().astype(bool)),
    }
    return result | _mean_auc(probs, truth)


def wilson_interval(successes: int, n: int, *, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, JASA 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _f1_macro(predicted: Ints, truth: Ints) -> float:
    """Mean F1 over the classes that occur in either argument ([N, C], 0/1)."""
    hits = (predicted & truth).sum(axis=0)
    total = predicted.sum(axis=0) + truth.sum(axis=0)
    present = total > 0
    return float((2 * hits[present] / total[present]).mean()) if present.any() else 0.0


def _mean_auc(probs: Floats, truth: Ints) -> dict[str, float]:
    defined = [auc for auc in roc_auc_by_class(probs, truth) if auc is not None]
    return {"roc_auc": float(np.mean(defined))} if defined else {}
