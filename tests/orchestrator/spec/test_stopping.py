"""Work stops where it looks, in its own thread alone, and nowhere else."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.spec.stopping import Stopped, go_on, stoppable


def test_work_that_nobody_can_stop_goes_on() -> None:
    go_on()


def test_work_goes_on_until_it_is_told() -> None:
    told = threading.Event()
    with stoppable(told):
        go_on()
        told.set()
        with pytest.raises(Stopped):
            go_on()
    go_on()


def test_what_looks_after_failures_does_not_catch_it() -> None:
    told = threading.Event()
    told.set()
    assert not issubclass(Stopped, Exception)
    with stoppable(told), pytest.raises(Stopped):
        go_on()


def test_another_thread_is_not_stopped() -> None:
    told = threading.Event()
    told.set()
    with stoppable(told), ThreadPoolExecutor(1) as pool:
        pool.submit(go_on).result()
