"""Losses agree with torch's own, and with their papers written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.spec.parts import TaskSpec
from orchestrator.spec.strategy import FeatureExtraction
from orchestrator.tasks.losses import (
    Loss,
    balanced_class_weights,
    build_loss,
    one_hot,
    tag_weights,
)

N_CLASSES = 4
SINGLE = TaskSpec(kind="image-classification", labels=tuple("abcd"))
MULTI = TaskSpec(kind="image-multilabel-classification", labels=tuple("abcd"))

WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.7])


def loss(task: TaskSpec, *, weights: Tensor | None = None, **params: Any) -> Loss:
    return Loss(task, FeatureExtraction(**params), class_weights=weights)


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(16, N_CLASSES, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classes() -> Tensor:
    return torch.arange(16) % N_CLASSES


@pytest.fixture
def labels() -> Tensor:
    return (torch.rand(16, N_CLASSES, generator=torch.Generator().manual_seed(1)) < 0.4).float()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_torchs(
    logits: Tensor, classes: Tensor, weights: Tensor | None, smoothing: float
) -> None:
    found = loss(SINGLE, weights=weights, label_smoothing=smoothing)(
        logits, one_hot(classes.numpy(), SINGLE)
    )
    expected = F.cross_entropy(
        logits, classes, weight=weights, label_smoothing=smoothing, reduction="none"
    )

    torch.testing.assert_close(found, expected)


def test_mixed_targets_are_torchs(logits: Tensor, classes: Tensor) -> None:
    mixed = 0.3 * F.one_hot(classes, N_CLASSES) + 0.7 * F.one_hot(classes.flip(0), N_CLASSES)
    found = loss(SINGLE, label_smoothing=0.1)(logits, mixed)

    torch.testing.assert_close(
        found, F.cross_entropy(logits, mixed, label_smoothing=0.1, reduction="none")
    )


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["single", "multi"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
def test_focal_loss_without_focus_is_cross_entropy(
    logits: Tensor, classes: Tensor, labels: Tensor, task: TaskSpec, weights: Tensor | None
) -> None:
    targets = labels if task is MULTI else one_hot(classes.numpy(), SINGLE)
    focal = loss(task, weights=weights, loss="focal", focal_gamma=0.0, label_smoothing=0.1)
    plain = loss(task, weights=weights, label_smoothing=0.1)

    torch.testing.assert_close(focal(logits, targets), plain(logits, targets))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_is_that_of_its_paper(logits: Tensor, classes: Tensor, gamma: float) -> None:
    prob = logits.double().softmax(dim=1)[torch.arange(16), classes]
    expected = -((1 - prob) ** gamma) * prob.log()

    found = loss(SINGLE, loss="focal", focal_gamma=gamma)(logits, one_hot(classes.numpy(), SINGLE))

    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_labels_is_that_of_torchvision(
    logits: Tensor, labels: Tensor, gamma: float
) -> None:
    from torchvision.ops import sigmoid_focal_loss

    expected = sigmoid_focal_loss(logits, labels, alpha=-1, gamma=gamma).mean(dim=1)

    found = loss(MULTI, loss="focal", focal_gamma=gamma)(logits, labels)

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["single", "multi"])
def test_a_certain_answer_has_a_finite_gradient(task: TaskSpec, gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0, -200.0, -200.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0]])

    loss(task, loss="focal", focal_gamma=gamma)(logits, targets).sum().backward()

    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_binary_cross_entropy_is_torchs(logits: Tensor, labels: Tensor) -> None:
    expected = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)

    torch.testing.assert_close(loss(MULTI)(logits, labels), expected)


def test_weights_of_labels_are_torchs_weights_of_positives(logits: Tensor, labels: Tensor) -> None:
    expected = F.binary_cross_entropy_with_logits(
        logits, labels, reduction="none", pos_weight=WEIGHTS
    ).mean(dim=1)

    torch.testing.assert_close(loss(MULTI, weights=WEIGHTS)(logits, labels), expected)


def test_smoothed_labels_move_towards_one_half(logits: Tensor, labels: Tensor) -> None:
    expected = F.binary_cross_entropy_with_logits(
        logits, labels * 0.8 + 0.1, reduction="none"
    ).mean(dim=1)

    torch.testing.assert_close(loss(MULTI, label_smoothing=0.2)(logits, labels), expected)


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["single", "multi"])
def test_half_precision_logits_give_a_float32_loss_of_each_example(
    logits: Tensor, classes: Tensor, task: TaskSpec
) -> None:
    found = loss(task)((100 * logits).bfloat16(), one_hot(classes.numpy(), SINGLE))

    assert found.dtype == torch.float32
    assert found.shape == (16,)
    assert torch.isfinite(found).all()


def test_one_hot_targets_are_distributions(classes: Tensor) -> None:
    single = one_hot(classes.numpy(), SINGLE)
    multi = one_hot(np.array([[1, 0, 1, 0]], np.uint8), MULTI)

    assert single.dtype == multi.dtype == torch.float32
    assert single.argmax(dim=1).tolist() == classes.tolist()
    assert single.sum(dim=1).tolist() == [1.0] * 16
    assert multi.tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_balanced_weights_have_mean_1_over_the_examples() -> None:
    targets = np.repeat([0, 1, 2, 3], [70, 20, 9, 1])
    weights = balanced_class_weights(targets, SINGLE)

    assert weights.tolist() == pytest.approx([100 / (4 * n) for n in (70, 20, 9, 1)])
    assert weights[targets].mean().item() == pytest.approx(1)


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    targets = np.random.default_rng(0).integers(0, 4, 99)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=targets)

    assert balanced_class_weights(targets, SINGLE).tolist() == pytest.approx(expected)


def test_balanced_labels_weigh_positives_as_much_as_negatives() -> None:
    targets = np.zeros((1000, 4), np.uint8)
    targets[:500, 0], targets[:200, 1], targets[:1, 2] = 1, 1, 1

    weights = balanced_class_weights(targets, MULTI).tolist()

    assert weights == pytest.approx([1, 4, 100, 100]), "at most 100"


def tag_loss(**params: object) -> Loss:
    weights = params.pop("class_weights", None)
    spec = TaskSpec(kind="token-classification", labels=("LOC",))
    return build_loss(spec, FeatureExtraction(**params), class_weights=weights, words_each=2.0)


def test_tagging_is_cross_entropy_over_the_labelled_tokens() -> None:
    logits = torch.randn(4, 6, 3)
    targets = torch.tensor(np.random.default_rng(0).integers(-1, 3, (4, 6)))
    found = tag_loss()(logits, targets)
    each = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-1, reduction="none")
    torch.testing.assert_close(found, each.sum(1) / 2)
    weights = torch.tensor([0.5, 2.0, 1.0])
    weighed = tag_loss(class_weights=weights)(logits, targets)
    each = F.cross_entropy(
        logits.transpose(1, 2), targets, ignore_index=-1, weight=weights, reduction="none"
    )
    torch.testing.assert_close(weighed, each.sum(1) / 2)


def test_tokens_without_a_tag_have_no_gradient_whatever_is_smoothed() -> None:
    logits = torch.randn(1, 3, 3, requires_grad=True)
    tag_loss(label_smoothing=0.2)(logits, torch.tensor([[0, -1, 2]])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].abs().max() == 0
    assert logits.grad[0, 0].abs().max() > 0


def test_weights_of_tags_are_inverse_to_their_frequency() -> None:
    assert tag_weights(np.array([0, 0, 0, 1]), 2).tolist() == pytest.approx([4 / 6, 2.0])


@pytest.mark.parametrize("params", [{}, {"label_smoothing": 0.1}, {"loss": "focal"}])
def test_a_span_is_two_choices_among_the_positions_in_reach(params: dict[str, object]) -> None:
    spec = TaskSpec(kind="question-answering", labels=("answer",))
    found = build_loss(spec, FeatureExtraction(**params), class_weights=None)
    logits = torch.randn(1, 5, 2, requires_grad=True)
    targets = torch.zeros(1, 5, 2)
    targets[0, 3:] = -1.0
    targets[0, 0, 0] = targets[0, 2, 1] = 1
    loss = found(logits, targets)
    loss.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 3:].abs().max() == 0
    if not params:
        inside = logits.detach()[:, :3]
        expected = F.cross_entropy(inside[..., 0], torch.tensor([0]))
        expected = (expected + F.cross_entropy(inside[..., 1], torch.tensor([2]))) / 2
        torch.testing.assert_close(loss.detach(), expected[None])
