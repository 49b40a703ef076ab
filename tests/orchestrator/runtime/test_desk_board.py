"""The desk gives every worker of a group the same trial, whatever has happened to the workers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from orchestrator.runtime.worker_group import DeskBoard


def ticket(trial: str) -> Any:
    return SimpleNamespace(trial=trial)


async def opened(*trials: str) -> DeskBoard:
    """A desk with tickets, whose first ticket the group `g` has."""
    desk = DeskBoard(idle_s=0.05)
    for trial in trials:
        await desk.lay_down(ticket(trial))
    assert await desk.open("g")
    return desk


async def taken(desk: DeskBoard, rank: int, after: int) -> str | None:
    task = await desk.take("g", rank, after)
    return None if task is None else str(task.ticket.trial)


async def ended(desk: DeskBoard, trial: str) -> None:
    await desk.report("g", {"trial": trial, "ended": True})


def test_all_ranks_run_trial_after_trial() -> None:
    async def walk() -> None:
        desk = await opened("a", "b")
        assert [await taken(desk, rank, 0) for rank in (0, 1)] == ["a", "a"]
        await ended(desk, "a")
        assert [await taken(desk, rank, 1) for rank in (1, 0)] == ["b", "b"]
        await ended(desk, "b")
        assert [await taken(desk, rank, 2) for rank in (0, 1)] == [None, None]

    asyncio.run(walk())


def test_a_restarted_group_ends_its_trial_and_takes_no_other() -> None:
    async def walk() -> None:
        desk = await opened("a", "b")
        assert [await taken(desk, rank, 0) for rank in (0, 1)] == ["a", "a"]
        assert [await taken(desk, rank, 0) for rank in (1, 0)] == ["a", "a"]  # come again
        # Rank 0 may ask for the next one before its report has come through the controller.
        assert await taken(desk, 0, 1) is None
        await ended(desk, "a")
        assert await taken(desk, 1, 1) is None
        assert [metrics["trial"] for metrics in await desk.reports("a", 1.0)] == ["a"]
        await desk.left("g", "gone")
        assert await desk.open("h")  # another group takes what waits

    asyncio.run(walk())


def test_workers_that_died_idle_all_end_even_if_a_ticket_comes_between() -> None:
    async def walk() -> None:
        desk = await opened("a")
        assert [await taken(desk, rank, 0) for rank in (0, 1)] == ["a", "a"]
        await ended(desk, "a")
        assert await taken(desk, 1, 0) is None  # the first of them to come again
        await desk.lay_down(ticket("b"))
        assert await taken(desk, 0, 0) is None
        await desk.left("g", "gone")
        assert await desk.open("h")

    asyncio.run(walk())
