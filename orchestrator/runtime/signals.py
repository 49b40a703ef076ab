"""Signals between the driver and running trials: stop flags, acknowledged epochs, positions.

A trial is never killed to stop it: it reads its flag after each epoch, ends itself and writes its
own record (design §6).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import ray

from orchestrator.spec.record import EpochRow
from orchestrator.training.io import Decision

ACKNOWLEDGE_TIMEOUT_S = 120.0


class SignalBoard:
    """What the actor holds. One a sweep; it needs no CPU of the cluster's."""

    def __init__(self) -> None:
        self._stops: dict[str, str] = {}
        self._acknowledged: dict[str, int] = defaultdict(int)
        self._changed: asyncio.Condition | None = None
        self._positions: dict[str, str] = {}
        self._notes: list[tuple[str, str]] = []

    async def stop(self, trial: str, reason: str) -> None:
        """Flag a trial; the first reason stays."""
        self._stops.setdefault(trial, reason)

    async def forget(self, trial: str) -> None:
        """Clear what is known of a trial that starts or has ended."""
        self._stops.pop(trial, None)
        self._positions.pop(trial, None)
        self._acknowledged.pop(trial, None)

    async def acknowledge(self, trial: str, epoch: int) -> None:
        """The driver has seen this epoch and flagged what it wanted to flag."""
        condition = self._condition()
        async with condition:
            self._acknowledged[trial] = max(epoch, self._acknowledged[trial])
            condition.notify_all()

    async def decision(self, trial: str, epoch: int) -> str | None:
        """Who stops the trial, once the driver has seen `epoch`; None to go on."""
        condition = self._condition()
        async with condition:
            await asyncio.wait_for(
                condition.wait_for(lambda: self._acknowledged[trial] >= epoch),
                ACKNOWLEDGE_TIMEOUT_S,
            )
        return self._stops.get(trial)

    async def note(self, trial: str, text: str) -> None:
        """A trial's phase or position, for whoever watches."""
        if text.startswith("phase "):
            self._notes.append((trial, text))
        else:
            self._positions[trial] = text

    async def news(self) -> tuple[list[tuple[str, str]], dict[str, str]]:
        """Phases that began since the last call, and each running trial's position."""
        notes, self._notes = self._notes, []
        return notes, dict(self._positions)

    def _condition(self) -> asyncio.Condition:
        """Made in the actor's own event loop."""
        if self._changed is None:
            self._changed = asyncio.Condition()
        return self._changed


class Signals:
    """A handle on the board, which can be sent to trials."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def start(cls) -> Signals:
        """A new board on this cluster."""
        actor = ray.remote(SignalBoard).options(num_cpus=0, max_concurrency=1000).remote()
        return cls(actor)

    def stop(self, trial: str, reason: str) -> None:
        """Flag a trial; when this returns, its next look will see the flag."""
        ray.get(self._actor.stop.remote(trial, reason))

    def forget(self, trial: str) -> None:
        """Clear what is known of a trial."""
        ray.get(self._actor.forget.remote(trial))

    def acknowledge(self, trial: str, epoch: int) -> None:
        """The driver has seen this epoch."""
        self._actor.acknowledge.remote(trial, epoch)

    def decision(self, trial: str, epoch: int) -> tuple[Decision, str]:
        """What the trial shall do after `epoch`, once the driver has seen it."""
        reason: str | None = ray.get(self._actor.decision.remote(trial, epoch))
        return (Decision.CONTINUE, "") if reason is None else (Decision.STOP, reason)

    def note(self, trial: str, text: str) -> None:
        """Show something, without waiting."""
        self._actor.note.remote(trial, text)

    def news(self) -> tuple[list[tuple[str, str]], dict[str, str]]:
        """Phases that began, and positions."""
        news: Any = ray.get(self._actor.news.remote())
        phases, positions = news
        return phases, positions

    def close(self) -> None:
        """End the board."""
        ray.kill(self._actor)


def epoch_metrics(trial: str, row: EpochRow, objective_best: float) -> dict[str, float | int | str]:
    """What Tune is told of an epoch: finite Python numbers and the trial's own id."""
    return {
        "trial": trial,
        "epoch": row.epoch,
        "phase": row.phase,
        "objective": float(objective_best),
        "train_loss": float(row.train_loss),
        "seconds": float(row.seconds),
        "images_per_s": float(row.images_per_s),
        **{f"validation_{name}": float(value) for name, value in row.validation.items()},
    }
