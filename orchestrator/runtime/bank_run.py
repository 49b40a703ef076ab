"""A bank as a Ray task: many feature-extraction trials in one process, each with its own record."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import ray

from orchestrator.features.store import FeatureStore
from orchestrator.models.placing import one_device
from orchestrator.runtime.folders import SweepFolder
from orchestrator.runtime.signals import Signals
from orchestrator.runtime.trial_run import finish_trial, set_up_process
from orchestrator.runtime.worker_io import WorkerIO
from orchestrator.spec import mirror
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.record import EpochRow
from orchestrator.training.bank import run_bank
from orchestrator.training.io import Decision


@dataclass(frozen=True)
class BankTicket:
    """Which trials of which sweep, and what the bank may use.

    Attributes:
        name: What its progress is called.
        for_trials: Whether its heads are trials; else they are what others start from.
        deadline: Seconds since the epoch, after which its trials end as `stopped: budget`; None for
            no limit.
    """

    name: str
    sweep: str
    store: str
    trials: tuple[str, ...]
    for_trials: bool
    threads: int
    use_gpu: bool
    deadline: float | None


class _Untold:
    """A bank's members report nothing: they are never stopped one by one."""

    def report(self, row: EpochRow, objective_best: float) -> tuple[Decision, str]:
        raise AssertionError("a bank does not report epochs")

    def note(self, text: str) -> None:
        raise AssertionError("a bank notes its own position")


@ray.remote(max_retries=2)
def conduct_bank(ticket: BankTicket, signals: Signals) -> None:
    """Run the trials of a bank that have no record yet, and write their records."""
    started_at = datetime.now(UTC)
    folder = SweepFolder(mirror.local_path(ticket.sweep))
    place = folder.trial if ticket.for_trials else folder.head
    places = {trial: place(trial) for trial in ticket.trials}
    folder.look_up(places.values())
    starts = {
        trial: found.start() for trial, found in places.items() if found.known_record() is None
    }
    if not starts:
        return
    device = one_device(use_gpu=ticket.use_gpu)
    set_up_process(device, ticket.threads)
    experiments = [start.experiment for start in starts.values()]
    io = WorkerIO(
        experiments[0],
        folder,
        store=FeatureStore(mirror.local_path(ticket.store)),
        reporter=_Untold(),
        device=device,
        threads=ticket.threads,
    )

    def on_epoch(epoch: int, n_epochs: int, n_heads: int) -> None:
        signals.note(ticket.name, f"epoch {epoch}/{n_epochs}, {n_heads} heads")

    def stopped_by() -> str | None:
        over = ticket.deadline is not None and time.time() > ticket.deadline
        return "budget" if over else None

    def checkpoints(experiment: Experiment) -> Path:
        return place(experiment.id).checkpoints

    results = run_bank(
        experiments, io, checkpoints=checkpoints, on_epoch=on_epoch, stopped_by=stopped_by
    )
    for start, result in zip(starts.values(), results, strict=True):
        finish_trial(
            place(start.experiment.id),
            start,
            result,
            data=folder / "data",
            started_at=started_at,
            device=device,
            threads=ticket.threads,
            workers=1,
        )
