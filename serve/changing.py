"""One command at a time changes what is served on a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError

from orchestrator.errors import OrchestratorError

from .tally import NAMESPACE

NAME = "orchestrator-change"
PATIENCE_S = 600.0  # an update waits 300 s for its replicas, and the next may be waiting too
_ASK_AGAIN_S = 0.5


class _Turn:
    """The only one of its name on a cluster; Ray ends it with the driver that made it."""


@contextmanager
def changing(*, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold what is served from reading its settings until others are in their place.

    Without it, of two commands that read the same settings the later one would undo the earlier.
    Whoever holds it and dies holds it no more.

    Args:
        patience_s: With whoever holds it now.

    Raises:
        OrchestratorError: Another command holds it for longer.
    """
    turn = _taken(patience_s)
    try:
        yield
    finally:
        with suppress(RayError):  # the cluster may have ended, and with it the turn
            ray.kill(turn)


def _taken(patience_s: float) -> Any:
    deadline_s = time.monotonic() + patience_s
    kind: Any = ray.remote(_Turn).options(
        name=NAME, namespace=NAMESPACE, num_cpus=0, max_restarts=-1
    )
    while True:
        try:
            return kind.remote()
        except ValueError as err:  # the name is taken
            if time.monotonic() > deadline_s:
                raise OrchestratorError(
                    f"another command has been changing what is served for {patience_s:.0f} s. "
                    "Wait for its end, or end it, then ask again"
                ) from err
            time.sleep(_ASK_AGAIN_S)
