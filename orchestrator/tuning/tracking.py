"""MLflow tracking, from the driver alone: one run a trial, named by its Experiment's digest."""

from __future__ import annotations

import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.runtime.folders import SweepFolder
from orchestrator.spec.record import Record
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tuning.progress import Progress


def tracking_uri(spec: SweepSpec) -> str:
    """Where runs are tracked: as the spec says, or a SQLite file in the storage folder."""
    return spec.tracking.mlflow or f"sqlite:///{Path(spec.storage) / 'mlflow.db'}"


class Tracker:
    """Logs ended trials. A tracker that does not answer costs a warning, never the sweep."""

    def __init__(self, spec: SweepSpec, folder: SweepFolder, progress: Progress) -> None:
        self._uri = tracking_uri(spec)
        self._artifacts = (Path(spec.storage) / "mlartifacts").resolve().as_uri()
        self._folder = folder
        self._progress = progress
        self._client: Any = None
        self._experiment_id = ""
        self._off = False

    def log(self, record: Record) -> None:
        """Log one trial with its parameters, its curve and how it ended."""
        from mlflow.exceptions import MlflowException

        if self._off:
            return
        try:
            self._log(record)
        except (MlflowException, OSError) as err:
            self._off = True
            self._progress.say(
                f"tracking at {self._uri} does not answer and is left out from here on: {err}"
            )

    def close(self) -> None:
        """Log what an earlier run of the sweep ended and could not log."""
        if self._client is None or self._off:
            return
        for record in self._folder.records().values():
            if not self._known(record):
                self.log(record)

    def _log(self, record: Record) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client = self._connected()
        started_ms = _epoch_ms(record.started_at)
        name = f"{record.experiment.strategy.strategy} {record.trial}"
        run = client.create_run(self._experiment_id, start_time=started_ms, run_name=name)
        metrics = [
            Metric(f"validation_{name}", value, started_ms, row.epoch)
            for row in record.epochs
            for name, value in (*row.validation.items(), ("train_loss", row.train_loss))
        ]
        metrics += [
            Metric("seconds", record.seconds, started_ms, 0),
            Metric("images_per_s", record.images_per_s, started_ms, 0),
            Metric("peak_memory_bytes", record.peak_memory_bytes, started_ms, 0),
        ]
        params = [Param(k, str(v)) for k, v in record.params.items()]
        params.append(Param("backbone", record.experiment.backbone.name))
        tags = {
            "trial": record.trial,
            "experiment": record.experiment.digest,
            "strategy": record.experiment.strategy.strategy,
            "status": record.status,
            "reason": record.reason[:4000],
            "sweep": str(self._folder.root),
        }
        for start in range(0, len(metrics), 900):  # MLflow takes at most 1000 a call
            client.log_batch(run.info.run_id, metrics=metrics[start : start + 900])
        client.log_batch(
            run.info.run_id, params=params, tags=[RunTag(k, v) for k, v in tags.items()]
        )
        ended_well = record.status in ("finished", "stopped")
        client.set_terminated(run.info.run_id, "FINISHED" if ended_well else "FAILED")

    def _known(self, record: Record) -> bool:
        found = self._connected().search_runs(
            [self._experiment_id], f"tags.experiment = '{record.experiment.digest}'", max_results=1
        )
        return bool(found)

    def _connected(self) -> Any:
        """The client, made at the first use: importing MLflow takes seconds."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            for noisy in ("alembic", "mlflow"):
                logging.getLogger(noisy).setLevel(logging.WARNING)
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=self._uri)
            name = self._folder.root.name
            known = client.get_experiment_by_name(name)
            self._experiment_id = (
                known.experiment_id
                if known is not None
                else client.create_experiment(name, artifact_location=f"{self._artifacts}/{name}")
            )
            self._client = client
        return self._client


def _epoch_ms(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp() * 1000)
