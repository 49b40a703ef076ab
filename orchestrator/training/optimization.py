"""Optimisers and schedules of a Phase, all torch's own. Schedules are stepped once a step."""

from __future__ import annotations

from typing import assert_never

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from orchestrator.spec.pretraining import PretrainingParams
from orchestrator.training.param_groups import ParamGroup
from orchestrator.training.phases import Phase

LOWEST_LR = 1e-7


def build_optimizer(phase: Phase, groups: tuple[ParamGroup, ...]) -> Optimizer:
    """The phase's optimiser over `groups`, fused: one kernel for all tensors, on CPUs too."""
    params = [
        {"params": list(g.parameters), "lr": g.lr, "weight_decay": g.weight_decay, "name": g.name}
        for g in groups
    ]
    match phase.optimizer:
        case "sgd":
            return torch.optim.SGD(params, momentum=0.9, nesterov=True, fused=True)
        case "adam":
            return torch.optim.Adam(params, fused=True)
        case "adamw":
            return torch.optim.AdamW(params, fused=True)
        case _:
            assert_never(phase.optimizer)


def build_schedule(phase: Phase, optimizer: Optimizer, *, steps_per_epoch: int) -> LRScheduler:
    """The course of all groups' rates over the phase's steps, each from its own base rate."""
    steps = max(1, phase.epochs * steps_per_epoch)
    # A deep backbone's early stages can begin below LOWEST_LR: a floor must not lift them.
    lowest = min(LOWEST_LR, *(group["lr"] for group in optimizer.param_groups))
    match phase.schedule:
        case "constant":
            return ConstantLR(optimizer, factor=1.0, total_iters=1)
        case "step":
            return StepLR(optimizer, step_size=max(1, -(-steps // 3)), gamma=0.1)
        case "cosine":
            return CosineAnnealingLR(optimizer, T_max=steps, eta_min=lowest)
        case "onecycle":
            peaks = [group["lr"] for group in optimizer.param_groups]
            return OneCycleLR(optimizer, max_lr=peaks, total_steps=steps + 1)
        case "linear-warm-up-cosine":
            rise = max(1, round(phase.lr_warm_up * steps))
            return risen(optimizer, rise, _cosine(optimizer, steps - rise, lowest))
        case _:
            assert_never(phase.schedule)


def build_pretraining_schedule(
    params: PretrainingParams, optimizer: Optimizer, *, steps: int
) -> LRScheduler:
    """A linear warm-up over a share of all steps, then the fall that `params` asks for."""
    rise = max(1, round(params.lr_warm_up * steps))
    fall = max(1, steps - rise)
    match params.schedule:
        case "cosine":
            return risen(optimizer, rise, _cosine(optimizer, fall, LOWEST_LR))
        case "linear":
            return risen(optimizer, rise, LinearLR(optimizer, 1.0, 0.0, total_iters=fall))
        case _:
            assert_never(params.schedule)


def risen(optimizer: Optimizer, rise: int, then: LRScheduler) -> LRScheduler:
    """A linear warm-up of `rise` steps before another schedule."""
    warm_up = LinearLR(optimizer, start_factor=1 / (rise + 1), total_iters=rise)
    return SequentialLR(optimizer, [warm_up, then], milestones=[rise])


def _cosine(optimizer: Optimizer, steps: int, lowest: float) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=max(1, steps), eta_min=lowest)
