"""Who runs a folder at a URI: an object that its owner renews; no lock reaches other machines.

The first to write `owner.json` has the lease, and renews it every BEAT_S. One that was not renewed
for STALE_S, by the clock of the store, may be taken over: its owner has died, or will find out at
its next beat that it is no longer its own, and stops. The locks of a machine are stronger: whoever
holds the folder's lock in the same mirror takes over at once.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.errors import StorageError, SweepLockedError
from orchestrator.spec import mirror
from orchestrator.spec.object_store import Stored

OWNER = "owner.json"
BEAT_S = 15.0
STALE_S = 90.0
SETTLE_S = 2.0
POLL_S = 5.0


@dataclass(frozen=True)
class _Owner:
    """Who holds a lease."""

    host: str
    process: int
    node: str
    token: str


@contextmanager
def leased(
    folder: Path,
    *,
    waiting: Callable[[], None] | None,
    beat_s: float = BEAT_S,
    stale_s: float = STALE_S,
    settle_s: float = SETTLE_S,
) -> Iterator[None]:
    """Hold a folder against other machines; nothing is done for one that is no mirror.

    Args:
        folder: Whose lock on this machine the caller holds.
        waiting: Called once if another has it, which is waited for; None refuses instead.
        beat_s: Seconds between renewals.
        stale_s: Seconds without one, after which a lease may be taken over.
        settle_s: Of two who take over at once, within which both have written.

    Raises:
        SweepLockedError: Another has it, or took it over, since this one was not heard of for long.
    """
    stored = mirror.at_uri(folder)
    if stored is None:
        yield
        return
    lease = _Lease(stored.below(OWNER), stale_s=stale_s, settle_s=settle_s)
    while (holder := lease.take()) is not None:
        if waiting is None:
            raise SweepLockedError(
                f"{stored.uri} is being run by process {holder.process} on "
                f"{holder.host}. Wait for it, or stop it and run the same command again; if it has "
                f"died, that works {stale_s:.0f} s after its last sign of life"
            )
        waiting()
        waiting = _told
        time.sleep(POLL_S)
    ended = threading.Event()
    thread = threading.Thread(target=lease.renew, args=(ended, beat_s), daemon=True, name="lease")
    thread.start()
    try:
        with _interruptible(lease):
            yield
    finally:
        ended.set()
        thread.join()
        lost = lease.lost
        lease.give_back()
    if lost:
        raise SweepLockedError(
            f"{stored.uri} was taken over by another machine, which had not heard "
            f"of this one for {stale_s:.0f} s. It goes on there"
        )


def _told() -> None:
    """Said already."""


@contextmanager
def _interruptible(lease: _Lease) -> Iterator[None]:
    """Let a lost lease interrupt the main thread where SIGINT is ignored, as by a script's `&`.

    An interrupt from outside stays ignored there.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        yield
        return

    def hear(*_: object) -> None:
        if lease.lost:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Lease:
    def __init__(self, stored: Stored, *, stale_s: float, settle_s: float) -> None:
        self._stored = stored
        self._stale_s, self._settle_s = stale_s, settle_s
        self._own = _Owner(socket.gethostname(), os.getpid(), mirror.node_id(), uuid.uuid4().hex)
        self.lost = False

    def take(self) -> _Owner | None:
        """Take the lease; who has it, if that is another."""
        content = self._content()
        if self._stored.write(content, first_wins=True):
            return None
        holder = self._holder()
        if holder is not None and holder.node != self._own.node and self._is_fresh():
            return holder
        self._stored.write(content)
        if holder is None or holder.node != self._own.node:
            time.sleep(self._settle_s)
        holder = self._holder()
        return None if holder == self._own else holder

    def renew(self, ended: threading.Event, beat_s: float) -> None:
        """Say now and then that the owner is alive, until the work has ended or the lease is lost.

        A store that does not answer for a while costs a beat. A lost lease interrupts the main
        thread as Ctrl-C does: what has ended is kept.
        """
        while not ended.wait(beat_s):
            try:
                holder = self._holder()
                if holder is not None and holder != self._own:
                    self.lost = True
                    _thread.interrupt_main()
                    return
                self._stored.write(self._content())
            except StorageError:  # it answers again, or others will take over
                continue

    def give_back(self) -> None:
        """Let the next one have it at once; where the store does not answer, it waits."""
        with contextlib.suppress(StorageError):
            if not self.lost and self._holder() == self._own:
                self._stored.remove()

    def _content(self) -> bytes:
        return json.dumps(asdict(self._own)).encode()

    def _holder(self) -> _Owner | None:
        content = self._stored.read()
        try:
            return None if content is None else _Owner(**json.loads(content))
        except (ValueError, TypeError) as err:
            told = "is damaged. Delete it if nothing runs there"
            raise SweepLockedError(f"{self._stored.uri} {told}") from err

    def _is_fresh(self) -> bool:
        """Whether its owner was heard of lately, by the clock of the store."""
        probe = Stored(f"{self._stored.uri}.{self._own.token}")
        probe.write(b"")
        now, beat = probe.written_at(), self._stored.written_at()
        probe.remove()
        return now is not None and beat is not None and (now - beat).total_seconds() < self._stale_s
