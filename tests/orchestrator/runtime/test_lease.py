"""One machine runs a sweep at a URI; one that has died is followed, one that sleeps gives way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from orchestrator.errors import SweepLockedError
from orchestrator.runtime.lease import leased
from orchestrator.spec import mirror
from tests.object_storage import Node

taken = partial(leased, waiting=None, beat_s=0.1, stale_s=60, settle_s=0.1)
takes_over = partial(leased, waiting=None, beat_s=60, stale_s=-1, settle_s=0)


def test_another_machine_is_refused_and_told_by_whom(storage_uri: str, become: Node) -> None:
    with taken(mirror.local_path(storage_uri)):
        become("b")
        with (
            pytest.raises(SweepLockedError, match=f"{storage_uri} is being run by process"),
            taken(mirror.local_path(storage_uri)),
        ):
            pytest.fail("two run it")
        become("a")
    assert mirror.names(mirror.local_path(storage_uri)) == set(), "nothing is left"
    become("b")
    with taken(mirror.local_path(storage_uri)):
        pass


def test_one_that_died_is_followed_at_once_on_its_own_machine(storage_uri: str) -> None:
    folder = mirror.local_path(storage_uri)
    dead = taken(folder, beat_s=60)
    dead.__enter__()
    with taken(folder):  # who holds the machine's own lock knows that it has died
        pass
    dead.__exit__(None, None, None)


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["in front", "behind"])
def interrupts(request: pytest.FixtureRequest) -> Iterator[object]:
    """What Ctrl-C does: in a terminal, or where a script started the process with `&`."""
    before = signal.signal(signal.SIGINT, request.param)
    yield request.param
    signal.signal(signal.SIGINT, before)


def test_one_that_is_not_heard_of_is_followed_elsewhere_and_finds_out(
    storage_uri: str, become: Node, interrupts: object
) -> None:
    asleep = taken(mirror.local_path(storage_uri), beat_s=5)  # not while the other takes over
    asleep.__enter__()
    become("b")
    with pytest.raises(KeyboardInterrupt), takes_over(mirror.local_path(storage_uri)):
        works_on()
    with pytest.raises(SweepLockedError, match="taken over by another machine"):
        asleep.__exit__(None, None, None)
    assert signal.getsignal(signal.SIGINT) == interrupts


@pytest.mark.parametrize("interrupts", [signal.SIG_IGN], indirect=True)
def test_one_that_ignores_interrupts_goes_on_ignoring_those_from_outside(
    storage_uri: str, interrupts: object
) -> None:
    with taken(mirror.local_path(storage_uri)):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
    assert signal.getsignal(signal.SIGINT) == interrupts


def works_on() -> None:
    for _ in range(600):  # an interrupt waits for the end of a sleep
        time.sleep(0.1)


def test_a_lease_is_waited_for_where_that_is_asked(
    storage_uri: str, become: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.runtime.lease.POLL_S", 0.01)
    holder, told = ExitStack(), []
    holder.enter_context(taken(mirror.local_path(storage_uri)))
    become("b")

    def waiting() -> None:
        told.append("waiting")
        holder.close()

    with leased(mirror.local_path(storage_uri), waiting=waiting):
        assert told == ["waiting"]


def test_a_folder_that_nodes_mount_needs_no_lease(tmp_path: Path) -> None:
    with taken(tmp_path):
        assert not list(tmp_path.iterdir())
