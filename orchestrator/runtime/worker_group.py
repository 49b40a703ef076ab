"""Ray Train workers that run one trial after the other, for as long as trials come.

Starting a TorchTrainer takes as long as a small trial: five processes beside the workers, each of
which imports torch anew. A sweep therefore keeps its workers. The driver starts as many groups as
trials run at once, each when there is a trial for it, and ends them all; between them and the Tune
actors stands a desk, an actor without a CPU of the cluster's. A Tune actor lays its ticket down
there and reads what Tune shall hear; a group takes the next ticket when it has ended one.

Ray Train restarts a group when one of its workers dies, as ever: it is given the same ticket again,
and the trial continues from its checkpoint. A group that has been restarted is kept to the end of
that trial only, so that each trial has all of Ray Train's restarts for itself. One that no ticket
reaches ends by itself and gives its CPUs back. Desk and groups' controllers live on the driver's
node: they end with it alone.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import ray
import torch
from ray import train
from ray.exceptions import RayError, RayTaskError
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.runtime.scratch import train_scratch
from orchestrator.runtime.signals import Signals, epoch_metrics
from orchestrator.runtime.trial_run import TrialTicket, conduct_trial, error_text
from orchestrator.spec.record import EpochRow
from orchestrator.spec.sweep import WorkersSpec
from orchestrator.training.io import Decision

MAX_FAILURES = 2
POLL_S = 0.2
IDLE_S = 30.0
CLOSING_S = 60.0


@dataclass(frozen=True)
class Task:
    """A ticket as a group has it.

    Attributes:
        number: Of the group's tickets, from 1.
        ticket: The trial.
        takes: How often rank 0 has taken it: more than once after a restart.
        ended: Whether its workers have said so.
    """

    number: int
    ticket: TrialTicket
    takes: int = 0
    ended: bool = False


class DeskBoard:
    """What the desk's actor holds: tickets that wait, those that groups have, unread reports.

    A report says of one trial how an epoch went, or that the trial has ended: then it has `ended`,
    and an `error` if its workers ended with it.
    """

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._waiting: deque[TrialTicket] = deque()
        self._tasks: dict[str, Task] = {}  # by group
        self._idle: set[str] = set()
        self._leaving: set[str] = set()
        self._running: set[str] = set()  # trials, from their ticket to their end
        self._reports: dict[str, list[dict[str, Any]]] = {}
        self._closed = False
        self._changed = asyncio.Condition()

    async def lay_down(self, ticket: TrialTicket) -> None:
        """A trial wants workers, unless it has them already, for a Tune actor that has died."""
        async with self._changed:
            unread = self._reports.setdefault(ticket.trial, [])
            if ticket.trial not in self._running and not unread:
                self._running.add(ticket.trial)
                self._waiting.append(ticket)
                self._changed.notify_all()

    async def reports(self, trial: str, within_s: float) -> list[dict[str, Any]]:
        """What has been said of a trial since the last call, waiting for something so long."""
        async with self._changed:
            said = self._changed.wait_for(lambda: self._reports.get(trial))
            try:
                await asyncio.wait_for(said, within_s)
            except TimeoutError:
                return []
            found, self._reports[trial] = self._reports[trial], []
            return found

    async def open(self, group: str) -> bool:
        """Wait until there is work for a new group, and keep it for it; False: there is no more."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or (self._waiting and not self._idle))
            return not self._closed and self._give(group)

    async def take(self, group: str, rank: int, after: int) -> Task | None:
        """The group's task with a number above `after`; None when its workers shall end.

        Workers that died without a trial and came again end at once, all of them.
        """
        async with self._changed:
            known = self._tasks[group]
            if known.ended and after < known.number:
                self._leaving.add(group)
            if rank == 0 and after:
                self._idle.add(group)
            word = self._changed.wait_for(lambda: self._may_go_on(group, after))
            try:
                await asyncio.wait_for(word, self._idle_s)
            except TimeoutError:
                self._leaving.add(group)
            self._idle.discard(group)
            self._changed.notify_all()
            task = self._tasks[group]
            if task.number <= after or task.ended:
                return None
            if rank == 0:
                self._tasks[group] = task = replace(task, takes=task.takes + 1)
            return task

    async def report(self, group: str, metrics: dict[str, Any]) -> None:
        """What rank 0 of a group reports."""
        async with self._changed:
            task = self._tasks[group]
            if metrics.get("ended") and task.ticket.trial == metrics["trial"]:
                self._tasks[group] = replace(task, ended=True)
            self._tell(metrics)

    async def left(self, group: str, error: str) -> None:
        """A group's workers have ended; what they have not finished ends with them."""
        async with self._changed:
            task = self._tasks.pop(group)
            self._leaving.discard(group)
            self._idle.discard(group)
            self._tell({"trial": task.ticket.trial, "ended": True, "error": error})

    async def close(self) -> None:
        """No ticket will come any more."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _may_go_on(self, group: str, after: int) -> bool:
        task = self._tasks[group]
        if task.takes > 1 and task.number <= after:  # restarted: kept to the end of its trial
            self._leaving.add(group)
        return self._closed or group in self._leaving or task.number > after or self._give(group)

    def _give(self, group: str) -> bool:
        """The group's next task, if a ticket waits and the group does not leave."""
        if not self._waiting or group in self._leaving:
            return False
        number = self._tasks[group].number + 1 if group in self._tasks else 1
        self._tasks[group] = Task(number, self._waiting.popleft())
        return True

    def _tell(self, metrics: dict[str, Any]) -> None:
        """Keep a report for whoever reads; workers that are restarted may end a trial again."""
        trial = metrics["trial"]
        if trial in self._running:
            self._reports[trial].append(metrics)
            if metrics.get("ended"):
                self._running.remove(trial)
            self._changed.notify_all()


class Desk:
    """A handle on the desk, which can be sent to trials."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def run(self, ticket: TrialTicket) -> Iterator[dict[str, Any]]:
        """Have the trial run, and yield what its workers report until it has ended.

        Raises:
            WorkersEndedError: They ended before it.
        """
        ray.get(self.actor.lay_down.remote(ticket))
        while True:
            for metrics in ray.get(self.actor.reports.remote(ticket.trial, POLL_S)):
                if "error" in metrics:
                    raise WorkersEndedError(metrics["error"])
                if metrics.get("ended"):
                    return
                yield metrics


class WorkersEndedError(Exception):
    """What ended the workers of a trial."""


class WorkerGroups:
    """The groups of one sweep, for the length of a block.

    Args:
        workers: How many in each group, and what each may use.
        signals: The sweep's.
        scratch: Where Ray Train may write: a path that every node mounts, or a URI.
        at_once: How many groups there may be.

    Attributes:
        desk: Where trials find their workers.
    """

    def __init__(
        self, workers: WorkersSpec, signals: Signals, scratch: str, *, at_once: int
    ) -> None:
        here: Any = NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        kept = {"num_cpus": 0, "scheduling_strategy": here}
        actor = ray.remote(DeskBoard).options(max_concurrency=1000, **kept).remote()
        self.desk = Desk(actor)
        self._fit = _fit.options(**kept)
        self._running: set[ray.ObjectRef[None]] = set()
        self._given = (workers, signals, scratch)
        self._keepers = [
            threading.Thread(target=self._keep_one, daemon=True, name=f"workers-{i}")
            for i in range(at_once)
        ]

    def __enter__(self) -> Self:
        for keeper in self._keepers:
            keeper.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the groups, which are idle unless the search broke off: then they are killed."""
        deadline_s = time.monotonic() + (CLOSING_S if err is None else POLL_S)
        with suppress(RayError):
            ray.get(self.desk.actor.close.remote())
            for keeper in self._keepers:
                keeper.join(max(0.0, deadline_s - time.monotonic()))
            for fit in list(self._running):
                ray.cancel(fit, force=True)  # its controller and workers end with it
            ray.kill(self.desk.actor)

    def _keep_one(self) -> None:
        """One group after another, each when a trial waits that no idle group can take."""
        desk = self.desk.actor
        with suppress(RayError):  # the cluster has gone, and the sweep with it
            while ray.get(desk.open.remote(group := uuid.uuid4().hex[:12])):
                error = "the workers ended without a record"
                fit = self._fit.remote(group, self.desk, *self._given)
                self._running.add(fit)
                try:
                    ray.get(fit)
                except RayTaskError as err:
                    error = error_text(err.cause)
                except RayError as err:
                    error = error_text(err)
                finally:
                    self._running.discard(fit)
                ray.get(desk.left.remote(group, error))


@ray.remote(max_retries=0)
def _fit(group: str, desk: Desk, workers: WorkersSpec, signals: Signals, scratch: str) -> None:
    """A group from its start to its end, in a process of its own: `fit` is full of warnings."""
    callbacks: list[Any] = [_HandIn(desk.actor, group)]
    TorchTrainer(
        train_worker,
        train_loop_config={"desk": desk, "group": group, "signals": signals},
        scaling_config=scaling(workers),
        run_config=train.RunConfig(
            name=f"workers-{group}",
            **train_scratch(scratch),
            failure_config=train.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=callbacks,
        ),
    ).fit()


def scaling(workers: WorkersSpec) -> train.ScalingConfig:
    """The workers of a TorchTrainer."""
    n_workers: Any = (
        workers.per_trial if isinstance(workers.per_trial, int) else workers.per_trial.elastic
    )
    resources: dict[str, float] = {"CPU": workers.cpus}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    return train.ScalingConfig(
        num_workers=n_workers, use_gpu=workers.gpus > 0, resources_per_worker=resources
    )


def train_worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs: trial after trial, as a single worker would."""
    context, desk = train.get_context(), config["desk"].actor
    rank, number = context.get_world_rank(), 0
    while (task := ray.get(desk.take.remote(config["group"], rank, number))) is not None:
        ticket, number = task.ticket, task.number
        conduct_trial(
            ticket,
            WorkerReporter(ticket.trial, config["signals"]),
            device=given_device(use_gpu=ticket.use_gpu),
            rank=rank,
            world_size=context.get_world_size(),
        )
        train.report({"trial": ticket.trial, "ended": True})


class _HandIn(train.UserCallback):
    """Hands rank 0's reports in at the desk.

    Ray's own TuneReportCallback uses a queue of one and can deadlock when a train function returns
    while its last report is under way; this cannot block.
    """

    def __init__(self, desk: Any, group: str) -> None:
        self._desk, self._group = desk, group

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Called by Ray Train's controller once all ranks have reported."""
        ray.get(self._desk.report.remote(self._group, metrics[0]))


class WorkerReporter:
    """Reports from a Ray Train worker; rank 0 waits for the driver's word."""

    def __init__(self, trial: str, signals: Signals) -> None:
        self._trial, self._signals = trial, signals

    def report(self, row: EpochRow, objective_best: float) -> tuple[Decision, str]:
        """Tell Ray Train, on every rank alike, since its report is a barrier."""
        train.report(epoch_metrics(self._trial, row, objective_best))
        if train.get_context().get_world_rank() != 0:
            return Decision.CONTINUE, ""
        return self._signals.decision(self._trial, row.epoch)

    def note(self, text: str) -> None:
        """Show something."""
        self._signals.note(self._trial, text)


def given_device(*, use_gpu: bool) -> torch.device:
    """The device that Ray gave this worker of several, made the current one.

    The workers of a node all see its devices, in any order: neither the first visible one nor the
    one of the worker's rank need be its own.
    """
    if not use_gpu:
        return torch.device("cpu")
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
