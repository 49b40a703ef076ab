"""One trial on one worker: from `experiment.json` to `record.json`."""

from __future__ import annotations

import gc
import os
import platform
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from orchestrator.data.pieces import truth_of
from orchestrator.features.store import FeatureStore
from orchestrator.models.placing import one_device
from orchestrator.runtime.folders import (
    SweepFolder,
    TrialFolder,
    TrialStart,
    write_predictions,
)
from orchestrator.runtime.memory import peak_memory_bytes, reset_peak_memory
from orchestrator.runtime.process_cache import open_examples
from orchestrator.runtime.worker_io import Reporter, WorkerIO
from orchestrator.spec import mirror
from orchestrator.spec.durable import file_digest
from orchestrator.spec.record import EpochRow, PhaseRow, Placement, Record
from orchestrator.tasks.task import build_task
from orchestrator.training.checkpoint import newest_checkpoint, read_checkpoint
from orchestrator.training.precision import resolve_precision
from orchestrator.training.trial import TrialResult, run_trial

VERSIONED = (
    "ray",
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "numpy",
    "pillow",
    "pyarrow",
)


@dataclass(frozen=True)
class TrialTicket:
    """Which trial of which sweep, and what each of its workers may use.

    `sweep` and `store` are paths that every node mounts, or URIs.
    `asked_at` is when Tune started the trial, in seconds since the epoch.
    """

    sweep: str
    store: str
    trial: str
    threads: int
    use_gpu: bool
    asked_at: float | None = None


def conduct_trial(
    ticket: TrialTicket,
    reporter: Reporter,
    *,
    device: torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Record | None:
    """Run the trial that `ticket` names on this worker; rank 0 writes and returns its record.

    Without a `device` it is the first that this process sees: an actor sees its own alone.

    An error of the trial's own ends this trial as `failed`, never the sweep. On several workers
    it is raised instead, so that Ray Train sees it and restarts the group.
    """
    folder = SweepFolder(mirror.local_path(ticket.sweep))
    trial = folder.trial(ticket.trial)
    trial.refresh()
    start = trial.start()
    done = trial.record()
    if done is not None:
        return done
    if device is None:
        device = one_device(use_gpu=ticket.use_gpu)
    set_up_process(device, ticket.threads)
    started_at, started_s, start_up_s = datetime.now(UTC), time.monotonic(), 0.0
    try:
        io = WorkerIO(
            start.experiment,
            folder,
            store=FeatureStore(mirror.local_path(ticket.store)),
            reporter=reporter,
            device=device,
            threads=ticket.threads,
            rank=rank,
            world_size=world_size,
        )
        io.load()
        asked_at = ticket.asked_at
        start_up_s = 0.0 if asked_at is None else max(0.0, time.time() - asked_at)
        result = run_trial(start.experiment, io)
    except Exception as err:  # a trial's edge: one bad trial must not end a sweep
        if world_size > 1:
            raise
        seconds = time.monotonic() - started_s
        result = TrialResult(status="failed", reason=error_text(err), seconds=seconds)
    if rank != 0:
        return None
    return finish_trial(
        trial,
        start,
        result,
        data=folder / "data",
        started_at=started_at,
        start_up_s=start_up_s,
        device=device,
        threads=ticket.threads,
        workers=world_size,
    )


def finish_trial(
    trial: TrialFolder,
    start: TrialStart,
    result: TrialResult,
    *,
    data: Path,
    started_at: datetime,
    start_up_s: float = 0.0,
    device: torch.device,
    threads: int,
    workers: int,
) -> Record:
    """Write the record of a trial that has ended, and its predictions where it has a best epoch."""
    record = _record(
        start,
        result,
        started_at=started_at,
        start_up_s=start_up_s,
        peak_bytes=peak_memory_bytes(device),
        placement=Placement(
            host=socket.gethostname(),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            workers=workers,
            threads=threads,
            precision=resolve_precision(start.experiment.strategy.precision, device),
        ),
    )
    if result.checkpoint is not None:
        record = _with_predictions(trial, record, data)
    trial.write_record(record)
    return record


def failed_record(folder: TrialFolder, reason: str) -> Record:
    """The record of a trial whose processes died and could not write one.

    The epochs that its newest checkpoint knows of are kept; they are no result.
    """
    start = folder.start()
    checkpoint = newest_checkpoint(folder.checkpoints)
    state = checkpoint.state if checkpoint is not None else {}
    result = TrialResult(
        status="failed",
        reason=reason,
        phases=tuple(PhaseRow.model_validate(row) for row in state.get("phases", ())),
        epochs=tuple(EpochRow.model_validate(row) for row in state.get("epochs", ())),
        seconds=state.get("seconds", 0.0),
    )
    return _record(start, result, started_at=datetime.now(UTC), peak_bytes=0, placement=None)


def error_text(err: BaseException) -> str:
    """An error in one line: its kind and what it says."""
    text = " ".join(str(err).split())
    return f"{type(err).__name__}: {text[:500]}" if text else type(err).__name__


def _record(
    start: TrialStart,
    result: TrialResult,
    *,
    started_at: datetime,
    start_up_s: float = 0.0,
    peak_bytes: int,
    placement: Placement | None,
) -> Record:
    return Record(
        trial=start.experiment.id,
        status=result.status,
        reason=result.reason,
        experiment=start.experiment,
        attempts=start.attempt,
        phases=result.phases,
        epochs=result.epochs,
        best_epoch=result.best_epoch,
        validation=result.validation,
        objective=result.objective,
        interpolation=result.interpolation,
        checkpoint=result.checkpoint,
        seconds=result.seconds,
        start_up_seconds=start_up_s,
        images_per_s=result.images_per_s,
        peak_memory_bytes=peak_bytes,
        placement=placement,
        started_at=started_at.isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **{n: version(n) for n in VERSIONED}},
    )


def _with_predictions(trial: TrialFolder, record: Record, data: Path) -> Record:
    """Write the best epoch's validation outputs beside the record, which names their digest."""
    assert record.checkpoint is not None
    checkpoint = read_checkpoint(trial.root / record.checkpoint)
    assert checkpoint is not None, "the checkpoint of the best epoch is gone"
    examples = open_examples(data)
    path = trial.root / "validation.arrow"
    task = build_task(record.experiment.task)
    truth = truth_of(examples, "validation")
    write_predictions(
        path,
        task=task,
        examples=examples,
        split="validation",
        said=task.unpacked(checkpoint.validation["probs"].numpy(), truth),
        truth=truth,
    )
    weights = f"{record.checkpoint}/weights.safetensors"
    files = {path.name: file_digest(path), weights: file_digest(trial.root / weights)}
    return record.model_copy(update={"files": files})


def set_up_process(device: torch.device, threads: int) -> None:
    """Leave nothing of an earlier trial in this process: threads, peak memory, kernel choices."""
    gc.collect()
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    reset_peak_memory(device)


def _processor() -> str:
    return f"CPU ({platform.machine()}, {os.cpu_count()} logical)"
