"""A trial as Tune starts it: on one worker in the actor itself, on several through Ray Train."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from ray import tune

from orchestrator.runtime.folders import SweepFolder
from orchestrator.runtime.signals import Signals, epoch_metrics
from orchestrator.runtime.trial_run import TrialTicket, conduct_trial, failed_record
from orchestrator.runtime.worker_group import Desk, WorkersEndedError
from orchestrator.spec import mirror
from orchestrator.spec.record import EpochRow, Record
from orchestrator.training.io import Decision


@dataclass(frozen=True)
class TuneContext:
    """What all trials of a sweep share.

    Attributes:
        ticket: With an empty trial id.
        signals: The sweep's.
        desk: Where a trial finds its workers; None when its own actor is the only one.
    """

    ticket: TrialTicket
    signals: Signals
    desk: Desk | None


def tune_trial(config: dict[str, Any], context: TuneContext) -> None:
    """The function that Tune runs: one trial, reported epoch by epoch.

    Args:
        config: `trial`: its id; the rest is Tune's and ours to show.
        context: Shared by all trials.
    """
    ticket = replace(context.ticket, trial=config["trial"], asked_at=time.time())
    context.signals.forget(ticket.trial)
    if context.desk is None:
        record = conduct_trial(ticket, ActorReporter(ticket.trial, context.signals))
    else:
        record = _conduct_on_workers(ticket, context.desk, context.signals)
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


def _conduct_on_workers(ticket: TrialTicket, desk: Desk, signals: Signals) -> Record:
    """Have workers run the trial, and pass their reports on to Tune."""
    reason = "the workers ended without a record"
    try:
        for metrics in desk.run(ticket):
            tune.report(metrics)
            signals.acknowledge(ticket.trial, metrics["epoch"])
    except WorkersEndedError as err:
        reason = str(err)
    trial = SweepFolder(mirror.local_path(ticket.sweep)).trial(ticket.trial)
    record = trial.record()
    if record is None:
        record = failed_record(trial, reason)
        trial.write_record(record)
    return record
