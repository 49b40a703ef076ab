"""The optimisers and schedules of `optimization.py` for M models at once, one a row.

torch's own run one model's rates at a time; here rates, decays and momenta are columns [M, 1, …].
The arithmetic is that of torch.optim.SGD, Adam and AdamW, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.training.optimization import build_optimizer, build_schedule
from orchestrator.training.param_groups import ParamGroup
from orchestrator.training.phases import Phase

BETA2 = 0.999
EPS = 1e-8


class BankOptimizer:
    """Steps parameters [M, …], each row by its own rate, decay and momentum.

    Matrices are decayed, vectors are not, as in `param_groups`; a row's parameter is a vector when
    it has one dimension.
    """

    def __init__(
        self, parameters: Sequence[Tensor], phases: Sequence[Phase], *, steps_per_epoch: int
    ) -> None:
        self._kind = phases[0].optimizer
        assert all(phase.optimizer == self._kind for phase in phases)
        self._parameters = list(parameters)
        device = self._parameters[0].device
        self._decay = torch.tensor([p.weight_decay for p in phases], device=device)
        self._clip = torch.tensor([p.clip_norm for p in phases], device=device)
        self._rates, self._momenta = (
            table.to(device) for table in _courses(phases, steps_per_epoch)
        )
        self._first = [torch.zeros_like(p) for p in self._parameters]
        self._second = [torch.zeros_like(p) for p in self._parameters]
        self._n_steps = 0

    def keep(self, rows: Tensor, parameters: Sequence[Tensor]) -> None:
        """Go on with some of the models.

        Args:
            rows: Which, int64 [m].
            parameters: Theirs.
        """
        self._parameters = list(parameters)
        self._decay, self._clip = self._decay[rows], self._clip[rows]
        self._rates, self._momenta = self._rates[:, rows], self._momenta[:, rows]
        self._first = [state[rows] for state in self._first]
        self._second = [state[rows] for state in self._second]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> int:
        """One step of every model.

        Args:
            gradients: Of each parameter, [M, …]; they are changed.

        Returns:
            The number of steps taken.
        """
        self._clip_gradients(gradients)
        rates, momenta = self._rates[self._n_steps], self._momenta[self._n_steps]
        self._n_steps += 1
        for i, (parameter, gradient) in enumerate(zip(self._parameters, gradients, strict=True)):
            shape = (-1, *[1] * (parameter.ndim - 1))
            rate, momentum = rates.view(shape), momenta.view(shape)
            decay = self._decay.view(shape) if parameter.ndim > 2 else None
            if self._kind == "sgd":
                self._sgd(i, parameter, gradient, rate, momentum, decay)
            else:
                self._adam(i, parameter, gradient, rate, momentum, decay)
        return self._n_steps

    def _sgd(
        self, i: int, parameter: Tensor, gradient: Tensor, rate: Tensor, momentum: Tensor,
        decay: Tensor | None,
    ) -> None:  # fmt: skip
        if decay is not None:
            gradient.addcmul_(parameter, decay)
        buffer = self._first[i]
        if self._n_steps == 1:
            buffer.copy_(gradient)
        else:
            buffer.mul_(momentum).add_(gradient)
        parameter.sub_(rate * (gradient + momentum * buffer))

    def _adam(
        self, i: int, parameter: Tensor, gradient: Tensor, rate: Tensor, beta1: Tensor,
        decay: Tensor | None,
    ) -> None:  # fmt: skip
        if decay is not None and self._kind == "adamw":
            parameter.mul_(1 - rate * decay)
        elif decay is not None:
            gradient.addcmul_(parameter, decay)
        first, second = self._first[i], self._second[i]
        first.lerp_(gradient, (1 - beta1).expand_as(first))
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        width = rate / (1 - beta1**self._n_steps)
        spread = (second.sqrt() / (1 - BETA2**self._n_steps) ** 0.5).add_(EPS)
        parameter.sub_(width * first / spread)

    def _clip_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Scale each model's gradient to its own largest norm; 0 is none."""
        if not bool(self._clip.any()):
            return
        squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
        factor = (self._clip / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        factor = torch.where(self._clip > 0, factor, 1.0)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))


def _courses(phases: Sequence[Phase], steps_per_epoch: int) -> tuple[Tensor, Tensor]:
    """Rate and momentum (beta1) of each model at each step: float32 [steps, M], by torch itself.

    Models with the same schedule and length are the groups of one stand-in optimiser.
    """
    n_steps = max(phase.epochs for phase in phases) * steps_per_epoch
    rates, momenta = torch.zeros(n_steps, len(phases)), torch.zeros(n_steps, len(phases))
    alike: dict[tuple[str, float, int], list[int]] = {}
    for i, phase in enumerate(phases):
        alike.setdefault((phase.schedule, phase.lr_warm_up, phase.epochs), []).append(i)
    for members in alike.values():
        some = phases[members[0]]
        groups = tuple(
            ParamGroup(str(i), phases[i].head_lr, 0.0, (nn.Parameter(torch.zeros(1)),))
            for i in members
        )
        optimizer = build_optimizer(some, groups)
        schedule = build_schedule(some, optimizer, steps_per_epoch=steps_per_epoch)
        steps = some.epochs * steps_per_epoch
        course = [
            [(group["lr"], _momentum(group)) for group in _stepped(optimizer, schedule, step)]
            for step in range(steps)
        ]
        found = torch.tensor(course, dtype=torch.float64)
        rates[:steps, members] = found[..., 0].float()
        momenta[:steps, members] = found[..., 1].float()
    return rates, momenta


def _momentum(group: dict[str, Any]) -> float:
    """SGD's momentum, or Adam's beta1."""
    return float(group["momentum"] if "momentum" in group else group["betas"][0])


def _stepped(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, step: int
) -> list[dict[str, Any]]:
    """The stand-in's groups at a step, counted from 0."""
    if step:
        optimizer.step()
        schedule.step()
    groups: list[dict[str, Any]] = optimizer.param_groups
    return groups
