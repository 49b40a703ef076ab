"""Threads: what nobody waits for any more ends; explanations hold no prediction up."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.bundle.preparing import Input
from orchestrator.spec.stopping import go_on
from serve.endpoint import LocalEndpoint
from serve.entry import Entry, Identity
from serve.handler import Handler
from serve.keys import Keys
from serve.limits import Limits
from serve.worker import Worker
from tests.serve.conftest import ask
from tests.serve.material import COLOURS, Colours, image_file, plain_bundle

RED = image_file((250, 10, 10))
PREDICT, EXPLAIN = "/v1/models/colours:predict", "/v1/models/colours:explain"


def test_work_that_nobody_waits_for_stops_and_frees_its_thread() -> None:
    ended = threading.Event()

    def endless() -> None:
        try:
            while True:
                go_on()
                time.sleep(0.01)
        finally:
            ended.set()

    async def give_up() -> int:
        worker = Worker(threads=1, queue=0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await worker.run(endless)
        await asyncio.to_thread(ended.wait, 5)
        done = await worker.run(lambda: 7)
        return done.value

    assert asyncio.run(give_up()) == 7


def test_work_that_waits_for_a_thread_never_runs_once_it_is_cancelled() -> None:
    ran: list[int] = []

    async def give_up() -> None:
        worker = Worker(threads=1, queue=1)
        first = asyncio.create_task(worker.run(lambda: time.sleep(0.2)))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(worker.run(lambda: ran.append(1)))
        await asyncio.sleep(0.05)
        second.cancel()
        await first
        await asyncio.sleep(0.05)
        assert worker.taken == 0

    asyncio.run(give_up())
    assert ran == []


class Holding:
    """Work that holds the body of its request."""

    def __call__(self) -> None:
        raise AssertionError("it was cancelled")


def test_work_that_is_cancelled_while_it_waits_lets_go_of_its_body() -> None:
    async def give_up() -> None:
        worker = Worker(threads=1, queue=1)
        hangs = threading.Event()
        first = asyncio.create_task(worker.run(hangs.wait))
        await asyncio.sleep(0.05)
        work = Holding()
        held = weakref.ref(work)
        second = asyncio.create_task(worker.run(work))
        del work
        await asyncio.sleep(0.05)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        del second
        gc.collect()
        assert held() is None
        hangs.set()
        await first

    asyncio.run(give_up())


class Slow(Colours):
    """Takes its time for each of an explanation's passes, and counts them."""

    passes = 0

    def probabilities(self, views: Sequence[Any]) -> Any:
        go_on()
        type(self).passes += 1
        time.sleep(0.2)
        return super().probabilities(views)

    def predict(
        self, inputs: Sequence[Input], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[dict[str, Any]]:
        return iter([{"label": "red", "probabilities": {"red": 1.0}}] * len(inputs))


@pytest.fixture
def endpoint(tmp_path: Path) -> LocalEndpoint:
    limits = Limits(answer_s=0.3)
    bundle = plain_bundle(tmp_path / "b", kind="image-classification", labels=COLOURS)
    entry = Entry(Identity("colours", "3", None, bundle.digest), bundle, limits)
    worker, explainer = Worker(threads=1, queue=4), Worker(threads=1, queue=4)
    Slow.passes = 0
    return LocalEndpoint(entry, Slow(bundle), worker, explainer)  # type: ignore[arg-type]


def handler_of(endpoint: LocalEndpoint) -> Handler:
    return Handler({"colours": endpoint}, limits=endpoint.entry.limits, keys=Keys({}))


def test_an_explanation_that_is_late_computes_no_further(endpoint: LocalEndpoint) -> None:
    async def late() -> tuple[httpx.Response, int]:
        response = await ask(handler_of(endpoint), "POST", EXPLAIN, content=RED)
        await asyncio.sleep(0.3)
        soon = Slow.passes
        await asyncio.sleep(0.5)
        return response, Slow.passes - soon

    response, more = asyncio.run(late())
    assert response.status_code == 504
    assert more == 0


def test_explanations_hold_no_prediction_up(endpoint: LocalEndpoint) -> None:
    handler = handler_of(endpoint)

    async def both() -> int:
        explained = [
            asyncio.create_task(ask(handler, "POST", EXPLAIN, content=RED)) for _ in range(3)
        ]
        await asyncio.sleep(0.05)
        predicted = await ask(handler, "POST", PREDICT, content=RED)
        await asyncio.gather(*explained)
        return predicted.status_code

    assert asyncio.run(both()) == 200


def test_without_threads_of_their_own_explanations_use_the_others(
    endpoint: LocalEndpoint,
) -> None:
    alone = replace(endpoint, explainer=None)
    response = asyncio.run(ask(handler_of(alone), "POST", EXPLAIN, content=RED))
    assert response.status_code == 504
