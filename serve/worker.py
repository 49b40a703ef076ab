"""The threads that compute, so that the event loop never does, and how much may wait for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from orchestrator.spec.stopping import stoppable

from .problems import overloaded

T = TypeVar("T")


@dataclass(frozen=True)
class Done(Generic[T]):
    """What some work gave, and where its time went."""

    value: T
    queued_s: float
    ran_s: float


class Worker:
    """A few threads with a bounded queue before them; what finds it full is refused at once.

    Work that nobody waits for any more is told to stop, which it does before its next pass through
    a network; until then its thread counts as busy.
    """

    def __init__(self, *, threads: int, queue: int) -> None:
        self._most = threads + queue
        self._taken = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="answering")

    @property
    def taken(self) -> int:
        """Works that wait or run."""
        return self._taken

    async def run(self, work: Callable[[], T]) -> Done[T]:
        """The outcome of `work` in one of the threads.

        Cancelled while it waits, it never runs; cancelled later, it stops where it calls `go_on`.

        Raises:
            Refusal: The queue is full.
        """
        if self._taken >= self._most:
            raise overloaded(f"{self._most} requests wait for this replica or are being answered")
        submitted_s = time.perf_counter()
        told = threading.Event()
        waiting = [work]  # whose body nobody holds on to, once it is not to run
        del work

        def timed() -> Done[T]:
            started_s = time.perf_counter()
            with stoppable(told):
                value = waiting.pop()()
            return Done(value, started_s - submitted_s, time.perf_counter() - started_s)

        loop = asyncio.get_running_loop()
        future = self._pool.submit(timed)
        self._taken += 1
        future.add_done_callback(lambda ended: self._give_back(loop, ended))
        try:
            return await asyncio.wrap_future(future)
        finally:
            told.set()
            if future.cancel():  # its place in the queue is only left when a thread comes to it
                waiting.clear()

    def close(self) -> None:
        """Let running work end; what waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _give_back(self, loop: asyncio.AbstractEventLoop, _ended: Future[Done[T]]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self._taken -= 1


class Room:
    """Bytes that all bodies together may hold, so that many clients cannot fill the memory."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._taken_bytes = 0

    @property
    def taken_bytes(self) -> int:
        """What is held now."""
        return self._taken_bytes

    @contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """A function that takes so many bytes more; all are given back at the end of the block.

        The function raises Refusal where they do not fit.
        """
        mine = 0

        def take(n_bytes: int) -> None:
            nonlocal mine
            if self._taken_bytes + n_bytes > self._most_bytes:
                raise overloaded(f"bodies of {self._taken_bytes:,} bytes are held already")
            self._taken_bytes += n_bytes
            mine += n_bytes

        try:
            yield take
        finally:
            self._taken_bytes -= mine
