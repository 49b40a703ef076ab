"""Scales: from a value to a place between 0 and 1, and the ticks that name the places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from orchestrator.report.wording import finite, number, value

Course = Literal["log", "linear", "choice"]


@dataclass(frozen=True)
class Tick:
    """A named place on a scale."""

    at: float
    label: str


class Scale(Protocol):
    """Where a value lies, from 0 (start of the axis) to 1 (its end)."""

    def __call__(self, given: Any) -> float:
        """The place of a value."""

    def ticks(self) -> tuple[Tick, ...]:
        """Places worth a label, in order."""


@dataclass(frozen=True)
class Linear:
    """Equal differences are equal distances. `low` is less than `high`."""

    low: float
    high: float
    most_ticks: int = 6

    def __call__(self, given: Any) -> float:
        return (float(given) - self.low) / (self.high - self.low)

    def ticks(self) -> tuple[Tick, ...]:
        step = nice_step((self.high - self.low) / self.most_ticks)
        slack = 1e-9 * step
        first = math.ceil((self.low - slack) / step)
        last = math.floor((self.high + slack) / step)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return tuple(
            Tick(self(i * step), f"{i * step:,.{decimals}f}") for i in range(first, last + 1)
        )


@dataclass(frozen=True)
class Log:
    """Equal ratios are equal distances. 0 < `low` < `high`."""

    low: float
    high: float

    def __call__(self, given: Any) -> float:
        return math.log(float(given) / self.low) / math.log(self.high / self.low)

    def ticks(self) -> tuple[Tick, ...]:
        for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
            found = self._multiples(factors)
            if len(found) >= 3:
                break
        if len(found) < 2:
            found = [self.low, self.high]
        kept = found[:: math.ceil(len(found) / 7)]
        return tuple(Tick(self(v), number(v)) for v in kept)

    def _multiples(self, factors: Sequence[int]) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        candidates = (f * 10.0**d for d in decades for f in factors)
        return [c for c in candidates if self.low * (1 - 1e-9) <= c <= self.high * (1 + 1e-9)]


@dataclass(frozen=True)
class Choice:
    """Named values at equal distances, none at the edge."""

    values: tuple[str, ...]

    def __call__(self, given: Any) -> float:
        return (self.values.index(value(given)) + 0.5) / len(self.values)

    def ticks(self) -> tuple[Tick, ...]:
        return tuple(Tick((i + 0.5) / len(self.values), v) for i, v in enumerate(self.values))

    @property
    def band(self) -> float:
        """The share of the axis that one value has."""
        return 1 / len(self.values)


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= least * (1 - 1e-9))


def linear_over(values: Sequence[float], *, pad: float = 0.04, most_ticks: int = 6) -> Linear:
    """A linear scale with a little room around the values; any width when all are equal."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * pad or abs(high) * 0.05 or 0.5
    return Linear(low - room, high + room, most_ticks)


def log_over(values: Sequence[float], *, pad: float = 0.04) -> Log:
    """A logarithmic scale with a little room around the positive values."""
    low, high = min(values), max(values)
    room = (high / low) ** pad if high > low * (1 + 1e-9) else 1.5
    return Log(low / room, high * room)


def choice_over(values: Sequence[Any]) -> Choice:
    """One place for each distinct value: numbers by size, then words by alphabet."""
    numbers = {known: value(v) for v in values if (known := finite(v)) is not None}
    words = sorted({value(v) for v in values if finite(v) is None})
    return Choice(tuple(numbers[known] for known in sorted(numbers)) + tuple(words))


def scale_over(values: Sequence[Any], course: Course) -> Scale:
    """The scale of a parameter: as it was searched, unless its values do not allow that."""
    known = [number_ for v in values if (number_ := finite(v)) is not None]
    if course == "choice" or len(known) < len(values) or not known:
        return choice_over(values)
    if course == "log" and min(known) > 0:
        return log_over(known)
    return linear_over(known)


def amount_over(values: Sequence[float]) -> Scale:
    """A scale for amounts (seconds, bytes): logarithmic once they span more than a decade."""
    if values and min(values) > 0 and max(values) / min(values) > 10:
        return log_over(values)
    return linear_over(values)
