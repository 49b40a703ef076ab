"""Wall time of a sweep, summed over resumes."""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.runtime.folders import SweepFolder

FILE = "clock.json"
SAVE_INTERVAL_S = 5.0


class SweepClock:
    """Counts from what earlier runs of the sweep have spent.

    The sum is written now and then, so that a killed run loses a few seconds of it.
    """

    def __init__(
        self,
        folder: SweepFolder,
        *,
        minutes: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._limit_s = None if minutes is None else minutes * 60
        self._before_s = float((folder.read(FILE) or {}).get("seconds", 0.0))
        self._started_s = clock()
        self._saved_s = self._started_s

    def seconds(self) -> float:
        """Spent so far, this run included."""
        return self._before_s + self._clock() - self._started_s

    def over(self) -> bool:
        """Whether the budget of minutes is spent."""
        return self._limit_s is not None and self.seconds() >= self._limit_s

    def left(self) -> float | None:
        """Seconds left of the budget; None without a limit."""
        return None if self._limit_s is None else max(0.0, self._limit_s - self.seconds())

    def tick(self) -> None:
        """Save the sum if the last save is a while ago."""
        if self._clock() - self._saved_s >= SAVE_INTERVAL_S:
            self.save()

    def save(self) -> None:
        """Save the sum."""
        self._saved_s = self._clock()
        self._folder.write(FILE, {"seconds": round(self.seconds(), 3)})
