"""Training losses, one value an example, so that uneven batches can be weighted by count."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.spec.parts import TaskSpec, by_position, is_multilabel
from orchestrator.spec.strategy import StrategyParams
from orchestrator.tasks.annotations import IGNORED, OUT_OF_REACH
from orchestrator.tasks.metrics import Floats, Ints

# x^γ has an infinite slope at 0 for γ < 1: a certain answer would make the gradient NaN.
_LEAST_DOUBT = 1e-7


class Loss:
    """The loss of one experiment: cross-entropy or focal, smoothed, weighted by class.

    Targets are always distributions float32 [N, C] (one-hot, 0/1 for multi-label, or mixed by
    mixup and cutmix), so every combination goes one way.
    """

    def __init__(
        self, task: TaskSpec, params: StrategyParams, *, class_weights: Tensor | None
    ) -> None:
        self.multi_label = is_multilabel(task.kind)
        self.smoothing: float | Tensor = params.label_smoothing
        self.gamma: float | Tensor = params.focal_gamma if params.loss == "focal" else 0.0
        self.class_weights = class_weights

    @classmethod
    def stacked(cls, losses: Sequence[Loss], *, n_classes: int, device: torch.device) -> Loss:
        """The losses of M experiments of one task as one, for logits [M, N, C]."""

        def column(values: list[Any]) -> Tensor:
            return torch.tensor(values, device=device)[:, None, None]

        stack = copy.copy(losses[0])
        stack.smoothing = column([loss.smoothing for loss in losses])
        gammas = [loss.gamma for loss in losses]
        stack.gamma = column(gammas) if any(gammas) else 0.0
        if any(loss.class_weights is not None for loss in losses):
            ones = torch.ones(n_classes, device=device)
            given = [loss.class_weights for loss in losses]
            stack.class_weights = torch.stack([ones if w is None else w for w in given])[:, None]
        return stack

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example.

        Args:
            logits: float [..., N, C].
            targets: float32 [..., N, C].

        Returns:
            float32 [..., N].
        """
        logits = logits.float()
        if self.multi_label:
            return self._binary(logits, targets)
        return self._categorical(logits, targets)

    @property
    def focuses(self) -> bool:
        """Whether easy examples count less; a power of 0 leaves them all alike."""
        return isinstance(self.gamma, Tensor) or self.gamma > 0

    def _categorical(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy; focal modulation (1 − p)^γ per class, Lin et al., ICCV 2017, section 3."""
        smoothed = targets * (1 - self.smoothing) + self.smoothing / logits.shape[-1]
        log_probs = F.log_softmax(logits, dim=-1)
        terms = -smoothed * log_probs
        if self.focuses:
            terms = terms * (1 - log_probs.exp()).clamp(min=_LEAST_DOUBT) ** self.gamma
        if self.class_weights is not None:
            terms = terms * self.class_weights
        return terms.sum(dim=-1)

    def _binary(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy over labels."""
        smoothed = targets * (1 - self.smoothing) + self.smoothing / 2
        terms = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
        if self.focuses:
            right_prob = torch.sigmoid(logits) * targets + torch.sigmoid(-logits) * (1 - targets)
            terms = terms * (1 - right_prob).clamp(min=_LEAST_DOUBT) ** self.gamma
        if self.class_weights is not None:
            terms = terms * (1 + (self.class_weights - 1) * targets)
        return terms.mean(dim=-1)


class TagLoss(Loss):
    """The loss of tagging: that of every labelled token, summed over an input.

    Targets are tag numbers int64 [N, L], IGNORED where a token has none.

    Args:
        words_each: Labelled tokens of an input, on average over the training inputs: they divide
            the sum, so that the mean over an epoch is the mean over its words.
    """

    def __init__(
        self,
        task: TaskSpec,
        params: StrategyParams,
        *,
        class_weights: Tensor | None,
        words_each: float,
    ) -> None:
        super().__init__(task, params, class_weights=class_weights)
        self.words_each = words_each

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each input: float32 [N]."""
        labelled = targets != IGNORED
        truth = F.one_hot(targets.clamp(min=0), logits.shape[-1]).float()
        each = self._categorical(logits.float(), truth)
        return torch.where(labelled, each, 0).sum(dim=-1) / self.words_each


class SpanLoss(Loss):
    """The loss of a span: the mean of those of its start and its end, each one position of many.

    Targets are float32 [N, L, 2]: distributions over positions, OUT_OF_REACH where no answer can
    start or end.
    """

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each input: float32 [N]."""
        out = targets == OUT_OF_REACH
        truth, within = targets.masked_fill(out, 0), (~out).float()
        smoothed = truth * (1 - self.smoothing)
        smoothed = smoothed + self.smoothing * within / within.sum(dim=1, keepdim=True)
        log_probs = F.log_softmax(logits.float().masked_fill(out, -torch.inf), dim=1)
        log_probs = log_probs.masked_fill(out, 0)
        terms = -smoothed * log_probs
        if self.focuses:
            terms = terms * (1 - log_probs.exp()).clamp(min=_LEAST_DOUBT) ** self.gamma
        return terms.sum(dim=1).mean(dim=-1)


def build_loss(
    task: TaskSpec,
    params: StrategyParams,
    *,
    class_weights: Tensor | None,
    words_each: float = 1.0,
) -> Loss:
    """The loss that a task is learnt by."""
    match task.kind:
        case "token-classification":
            return TagLoss(task, params, class_weights=class_weights, words_each=words_each)
        case "question-answering":
            return SpanLoss(task, params, class_weights=None)
        case _:
            return Loss(task, params, class_weights=class_weights)


def loss_targets(targets: Ints | Floats, task: TaskSpec) -> Tensor:
    """Targets as the task's loss takes them."""
    if by_position(task.kind):
        return torch.from_numpy(targets)
    return one_hot(targets, task)  # type: ignore[arg-type]


def tag_weights(targets: Ints, n_tags: int) -> Tensor:
    """Weight of each tag, inversely proportional to its frequency; `targets` are of words."""
    counts = np.bincount(targets, minlength=n_tags).clip(min=1)
    return torch.from_numpy(np.asarray(len(targets) / (n_tags * counts), np.float32))


def one_hot(targets: Ints, task: TaskSpec) -> Tensor:
    """Targets as distributions: float32 [N, C], whichever kind the task has."""
    if is_multilabel(task.kind):
        return torch.from_numpy(targets).float()
    return F.one_hot(torch.from_numpy(targets).long(), len(task.labels)).float()


def balanced_class_weights(targets: Ints, task: TaskSpec) -> Tensor:
    """Weight of each class, inversely proportional to its frequency.

    Single-label: N / (C · n_c), whose mean over the training examples is 1 when
    every class occurs. Multi-label: the
    weight of a label's positives, (N − n_c) / n_c, at most 100.
    """
    counts = one_hot(targets, task).sum(dim=0).double().clamp(min=1)
    n = len(targets)
    if is_multilabel(task.kind):
        return ((n - counts) / counts).clamp(min=0.01, max=100).float()
    return torch.from_numpy(np.asarray(n / (len(counts) * counts.numpy()), np.float32))
