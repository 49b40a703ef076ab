"""Work in a thread that can be told to stop: it looks before each pass through a network.

A thread cannot be killed, and whoever waits for its answer may have gone. So that it does not
compute for nobody, what runs passes one after another calls `go_on` before each; whoever gave the
thread its work says so by `stoppable`. Without that, `go_on` does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event

_TOLD: ContextVar[Event | None] = ContextVar("told_to_stop", default=None)


class Stopped(BaseException):
    """The work was told to stop.

    As asyncio's CancelledError it is no Exception: what looks after failures must let it pass.
    """


@contextmanager
def stoppable(told: Event) -> Iterator[None]:
    """Let `go_on` stop the work of the block, in this thread, once `told` is set."""
    before = _TOLD.set(told)
    try:
        yield
    finally:
        _TOLD.reset(before)


def told_to_stop() -> Callable[[], bool]:
    """What tells another thread whether the work of this one is to stop."""
    told = _TOLD.get()
    return (lambda: False) if told is None else told.is_set


def go_on() -> None:
    """Return, unless the work was told to stop.

    Raises:
        Stopped: It was.
    """
    if told_to_stop()():
        raise Stopped
