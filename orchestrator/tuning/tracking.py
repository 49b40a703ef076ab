"""MLflow tracking, from the driver alone: one run a trial, named by its Experiment's digest."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from orchestrator.bundle.mlflow_server import (
    artifact_root,
    checked_uri,
    connect,
    one_writer,
    reached,
    shown_uri,
)
from orchestrator.errors import RegistryError
from orchestrator.runtime.folders import SweepFolder
from orchestrator.spec import mirror
from orchestrator.spec.record import Record
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tuning.progress import Progress

MOST_METRICS = 900  # MLflow takes at most 1,000 a call


def tracking_uri(spec: SweepSpec) -> str:
    """Where runs are tracked: as the spec says, or a SQLite file in the storage folder.

    A database cannot lie at a URI: without a server's address it is this machine's own.
    """
    folder = mirror.local_path(spec.storage)
    return checked_uri(spec.tracking.mlflow or f"sqlite:///{folder / 'mlflow.db'}")


class Tracker:
    """Logs ended trials from a thread of its own, so that MLflow never holds up a trial.

    A tracker that does not answer costs a line, never the sweep: the records are the state, and
    the next run of the sweep logs what is missing.
    """

    def __init__(self, spec: SweepSpec, folder: SweepFolder, progress: Progress) -> None:
        self._uri = tracking_uri(spec)
        self._folder = folder
        self._progress = progress
        self._records: queue.Queue[Record | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)

    def start(self, earlier: Iterable[Record]) -> None:
        """Begin, with the records of earlier runs of the sweep: those that are known are passed."""
        for record in earlier:
            self._records.put(record)
        self._thread.start()

    def log(self, record: Record) -> None:
        """Log one trial soon."""
        self._records.put(record)

    def close(self) -> None:
        """Log what is left."""
        if self._thread.is_alive():
            self._records.put(None)
            self._thread.join()

    def _run(self) -> None:
        try:
            with reached(self._uri):
                runs = _Runs(self._uri, self._folder)
                while (record := self._records.get()) is not None:
                    with one_writer(self._uri):
                        runs.log(record)
        except RegistryError as err:
            self._progress.say(f"tracking at {shown_uri(self._uri)} is left out: {err}")


class _Runs:
    """The MLflow experiment of one sweep, and its runs."""

    def __init__(self, uri: str, folder: SweepFolder) -> None:
        self._client = connect(uri)
        self._folder = folder
        name, root = folder.root.name, artifact_root(uri)
        with one_writer(uri):
            found = self._client.get_experiment_by_name(name)
            self._experiment: str = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(
                    name, artifact_location=f"{root}/{name}" if root else None
                )
            )

    def log(self, record: Record) -> None:
        """One run with the trial's parameters, its curve and how it ended, unless it is there."""
        from mlflow.entities import Param, RunTag

        same = f"tags.experiment = '{record.experiment.digest}'"
        if self._client.search_runs([self._experiment], same, max_results=1):
            return
        strategy = record.experiment.strategy.strategy
        started_ms = int(datetime.fromisoformat(record.started_at).timestamp() * 1000)
        run = self._client.create_run(
            self._experiment, start_time=started_ms, run_name=f"{strategy} {record.trial}"
        )
        params = {**record.params, "backbone": record.experiment.backbone.name}
        tags = {
            "trial": record.trial,
            "experiment": record.experiment.digest,
            "strategy": strategy,
            "status": record.status,
            "reason": record.reason[:4000],
            "sweep": mirror.location_of(self._folder.root),
        }
        self._client.log_batch(
            run.info.run_id,
            params=[Param(name, str(value)) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        metrics = _metrics(record, started_ms)
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(run.info.run_id, metrics=metrics[start : start + MOST_METRICS])
        ended_well = record.status in ("finished", "stopped")
        self._client.set_terminated(run.info.run_id, "FINISHED" if ended_well else "FAILED")


def _metrics(record: Record, started_ms: int) -> list[Any]:
    """The trial's curve by epoch, and what it cost."""
    from mlflow.entities import Metric

    curve = [
        Metric(name, value, started_ms, row.epoch)
        for row in record.epochs
        for name, value in (
            *((f"validation_{metric}", value) for metric, value in row.validation.items()),
            ("train_loss", row.train_loss),
        )
    ]
    costs = {
        "seconds": record.seconds,
        "images_per_s": record.images_per_s,
        "peak_memory_bytes": record.peak_memory_bytes,
    }
    return curve + [Metric(name, value, started_ms, 0) for name, value in costs.items()]
