"""A running average of the weights: steadier than the last step's (Polyak & Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of some parameters over optimiser steps.

    The first steps count more, so that the average leaves the start behind: after step t the decay
    is min(decay, (1 + t) / (10 + t)), as TensorFlow's ExponentialMovingAverage has it. Buffers
    (BatchNorm statistics) are not averaged.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self._average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, list(self._parameters), 1 - decay)

    @contextmanager
    def applied(self) -> Generator[None, None, None]:
        """The parameters hold their averages meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def apply(self) -> None:
        """The parameters become their averages."""
        with torch.no_grad():
            torch._foreach_copy_(list(self._parameters), self._average)

    def last(self) -> dict[str, Tensor]:
        """The weights of the last step, to be taken outside of `applied`."""
        return {f"{i}": parameter.detach() for i, parameter in enumerate(self._parameters)}

    @torch.no_grad()
    def restore(self, last: dict[str, Tensor]) -> None:
        """Take the parameters as averages, and `last` as the weights of the last step."""
        for i, (average, parameter) in enumerate(zip(self._average, self._parameters, strict=True)):
            average.copy_(parameter)
            parameter.copy_(last[f"{i}"])

    @torch.no_grad()
    def _swap(self) -> None:
        held = [parameter.clone() for parameter in self._parameters]
        self.apply()
        torch._foreach_copy_(self._average, held)
