"""One actor that adds up what all replicas have counted, and remembers what is deployed."""

from __future__ import annotations

import time
from typing import Any

import ray

from .metrics import GAUGES, Snapshot, merged

NAME = "orchestrator-tally"
NAMESPACE = "orchestrator"
SILENT_S = 30.0  # what a replica that has told nothing for so long measured is over


class Tally:
    """Sums that outlive the replicas that counted them."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, Snapshot]] = {}
        self._settings: str | None = None

    def tell(self, replica: str, snapshot: Snapshot) -> None:
        """Replace what a replica has counted since it began."""
        self._told[replica] = (time.monotonic(), snapshot)

    def total(self) -> Snapshot:
        """The sum over all replicas there ever were."""
        now_s = time.monotonic()
        return merged(
            _lasting(snapshot) if now_s - told_s > SILENT_S else snapshot
            for told_s, snapshot in self._told.values()
        )

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
