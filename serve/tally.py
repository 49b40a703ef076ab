"""One actor that adds up what all replicas have counted, and remembers what is deployed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from .metrics import GAUGES, Snapshot, merged

NAME = "orchestrator-tally"
NAMESPACE = "orchestrator"
SILENT_S = 30.0  # what a replica that has told nothing for so long measured is over
GONE_S = 3600.0  # and one that has told nothing for so long will tell nothing more


class Tally:
    """Sums that outlive the replicas that counted them.

    Args:
        clock: Seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, tuple[float, Snapshot]] = {}
        self._ended: Snapshot = {}
        self._settings: str | None = None

    def tell(self, replica: str, snapshot: Snapshot, *, last: bool = False) -> None:
        """Replace what a replica has counted since it began; with `last` it will count no more."""
        self._told[replica] = (self._clock(), snapshot)
        if last:
            self._end(replica)

    def total(self) -> Snapshot:
        """The sum over all replicas there ever were."""
        now_s = self._clock()
        for replica, (told_s, _) in list(self._told.items()):
            if now_s - told_s > GONE_S:
                self._end(replica)
        return merged(
            (
                self._ended,
                *(
                    _lasting(snapshot) if now_s - told_s > SILENT_S else snapshot
                    for told_s, snapshot in self._told.values()
                ),
            )
        )

    def _end(self, replica: str) -> None:
        """Add what a replica counted to what all ended ones did: there is no end to their names."""
        _, snapshot = self._told.pop(replica)
        self._ended = merged((self._ended, _lasting(snapshot)))

    def remember(self, settings: str) -> None:
        """Keep the settings of the application that runs now."""
        self._settings = settings

    def settings(self) -> str | None:
        """Those that were remembered last."""
        return self._settings


def _lasting(snapshot: Snapshot) -> Snapshot:
    """The counters alone: what a gauge of an ended replica showed is over."""
    return {name: series for name, series in snapshot.items() if name not in GAUGES}


def tally() -> Any:
    """The cluster's actor, made where there is none."""
    return (
        ray.remote(Tally)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=1,  # what is asked while it restarts waits; asking twice does no harm
        )
        .remote()
    )
