"""What the benchmarks share: rows with a goal, pairs timed in turn, a table and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Measured:
    """One benchmark's outcome.

    Attributes:
        id: Its name, P1 … P7 for sweeps and images, T1 … T3 for texts, S1 … S10 for endpoints.
        what: What was compared, or counted.
        value: The ratio, or the number.
        goal: The bound, e.g. `≥ 0.95×`.
        beside: Figures behind the value, and the metrics that show that both did the same work.
        unit: Of the value; × of a ratio.
    """

    id: str
    what: str
    value: float
    goal: str
    beside: dict[str, Any] = field(default_factory=dict)
    unit: str = "×"

    @property
    def told(self) -> str:
        """The value with its unit."""
        return f"{self.value:.3g}{self.unit}"

    @property
    def met(self) -> bool:
        """Whether the goal was."""
        sign, bound = self.goal.split()[:2]
        number = float(bound.removesuffix("×"))
        return self.value >= number if sign == "≥" else self.value <= number


def seconds_of(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    started_s = time.perf_counter()
    action()
    return time.perf_counter() - started_s


def paired(
    ours: Callable[[], object], theirs: Callable[[], object], *, pairs: int
) -> tuple[float, list[float], list[float]]:
    """Median of ours / theirs over pairs timed in turn, after one of each that is not counted.

    Returns:
        The ratio, and the seconds of each.
    """
    ours()
    theirs()
    a, b = [], []
    for number in range(pairs):
        # Alternate which goes first, so that a drift of the machine falls on both.
        for action, times in ((ours, a), (theirs, b))[:: 1 if number % 2 == 0 else -1]:
            times.append(seconds_of(action))
    return statistics.median(x / y for x, y in zip(a, b, strict=True)), a, b


def table(rows: list[Measured]) -> str:
    """The rows as a Markdown table."""
    lines = ["| id | what | measured | goal | met |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.id} | {row.what} | {row.told} | {row.goal} | {'yes' if row.met else 'no'} |"
        for row in rows
    ]
    return "\n".join(lines)


def write_rows(rows: list[Measured], path: Path) -> None:
    """Write the rows and the machine as JSON."""
    machine = {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "rows": [{**asdict(row), "met": row.met} for row in rows]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
