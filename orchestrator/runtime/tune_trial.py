"""A trial as Tune starts it: on one worker in the actor itself, on several through Ray Train."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import train, tune
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Queue

from orchestrator.runtime.folders import SweepFolder
from orchestrator.runtime.scratch import train_scratch
from orchestrator.runtime.signals import Signals, epoch_metrics
from orchestrator.runtime.trial_run import TrialTicket, conduct_trial, error_text, failed_record
from orchestrator.spec import mirror
from orchestrator.spec.record import EpochRow, Record
from orchestrator.spec.sweep import WorkersSpec
from orchestrator.training.io import Decision

MAX_FAILURES = 2
POLL_S = 0.2


@dataclass(frozen=True)
class TuneContext:
    """What all trials of a sweep share."""

    ticket: TrialTicket  # with an empty trial id
    workers: WorkersSpec
    signals: Signals
    train_storage: str  # scratch of Ray Train, never read back; a path, or a URI


def tune_trial(config: dict[str, Any], context: TuneContext) -> None:
    """The function that Tune runs: one trial, reported epoch by epoch.

    Args:
        config: `trial`: its id; the rest is Tune's and ours to show.
        context: Shared by all trials.
    """
    ticket = replace(context.ticket, trial=config["trial"], asked_at=time.time())
    context.signals.forget(ticket.trial)
    if context.workers.most == 1:
        record = conduct_trial(ticket, ActorReporter(ticket.trial, context.signals))
    else:
        record = _conduct_on_workers(ticket, context)
    assert record is not None
    tune.report(final_metrics(record))


def final_metrics(record: Record) -> dict[str, Any]:
    """The last thing that Tune is told of a trial: how it ended, and the best objective."""
    objective = record.experiment.objective
    value = record.objective if record.objective is not None else objective.worst
    if record.status in ("diverged", "failed"):
        value = objective.worst
    return {
        "trial": record.trial,
        "epoch": len(record.epochs),
        "objective": float(value),
        "status": record.status,
        "ended": True,
    }


class ActorReporter:
    """Reports from inside the Tune actor."""

    def __init__(self, trial: str, signals: Signals) -> None:
        self._trial, self._signals = trial, signals

    def report(self, row: EpochRow, objective_best: float) -> tuple[Decision, str]:
        """Tell Tune; when that returns the scheduler has spoken."""
        tune.report(epoch_metrics(self._trial, row, objective_best))
        self._signals.acknowledge(self._trial, row.epoch)
        return self._signals.decision(self._trial, row.epoch)

    def note(self, text: str) -> None:
        """Show something."""
        self._signals.note(self._trial, text)


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


class ForwardReports(train.UserCallback):
    """Puts rank 0's reports into a queue without bound.

    Ray's own TuneReportCallback uses a queue of one and can deadlock when a train function returns
    while its last report is under way; this cannot block.
    """

    def __init__(self, reports: Queue) -> None:
        self._reports = reports

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Called by Ray Train's controller once all ranks have reported."""
        self._reports.put_nowait(metrics[0])


def _conduct_on_workers(ticket: TrialTicket, context: TuneContext) -> Record:
    """Run the trial under a TorchTrainer, and pass its reports on to Tune from this thread.

    `fit` runs in a helper thread: `tune.report` must be called from the trial's own.
    """
    folder = SweepFolder(mirror.local_path(ticket.sweep))
    reports = Queue(actor_options={"num_cpus": 0})
    outcome: list[BaseException | None] = []

    def fit() -> None:
        try:
            _trainer(ticket, context, reports).fit()
            outcome.append(None)
        except Exception as err:  # noqa: BLE001  (brought to the trial's thread below)
            outcome.append(err)

    thread = threading.Thread(target=fit, daemon=True, name=f"fit-{ticket.trial}")
    thread.start()
    while thread.is_alive() or not reports.empty():
        try:
            metrics = reports.get(timeout=POLL_S)
        except queue.Empty:
            continue
        tune.report(metrics)
        context.signals.acknowledge(ticket.trial, metrics["epoch"])
    reports.shutdown()
    trial = folder.trial(ticket.trial)
    record = trial.record()
    if record is None:
        error = outcome[0] if outcome else None
        reason = error_text(error) if error else "the workers ended without a record"
        record = failed_record(trial, reason)
        trial.write_record(record)
    return record


def _trainer(ticket: TrialTicket, context: TuneContext, reports: Queue) -> TorchTrainer:
    workers = context.workers
    n_workers: Any = (
        workers.per_trial if isinstance(workers.per_trial, int) else workers.per_trial.elastic
    )
    resources: dict[str, float] = {"CPU": workers.cpus}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    callbacks: list[Any] = [ForwardReports(reports)]
    return TorchTrainer(
        train_worker,
        train_loop_config={"ticket": ticket, "signals": context.signals},
        scaling_config=train.ScalingConfig(
            num_workers=n_workers, use_gpu=workers.gpus > 0, resources_per_worker=resources
        ),
        run_config=train.RunConfig(
            name=f"trial-{ticket.trial}",
            **train_scratch(context.train_storage),
            failure_config=train.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=callbacks,
        ),
    )


def train_worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs: the same trial function as a single worker."""
    context = train.get_context()
    ticket: TrialTicket = config["ticket"]
    conduct_trial(
        ticket,
        WorkerReporter(ticket.trial, config["signals"]),
        device=given_device(use_gpu=ticket.use_gpu),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
    )


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
