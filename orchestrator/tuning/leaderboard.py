"""The leaderboard: all ended trials of a sweep, best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from orchestrator.runtime.folders import SweepFolder, TrialStart
from orchestrator.spec.parts import ObjectiveSpec
from orchestrator.spec.record import Record

SweepStatus = Literal["running", "finished", "budget", "interrupted"]


def ranked(records: Mapping[str, Record], objective: ObjectiveSpec) -> list[Record]:
    """Records best first; those without a usable result last.

    Ties go to the cheaper trial, then to the smaller id, so that the order is always the same.
    """

    def key(record: Record) -> tuple[bool, float, float, str]:
        usable = is_candidate(record)
        value = record.objective if usable and record.objective is not None else objective.worst
        signed = -value if objective.mode == "max" else value
        return (not usable, signed, record.seconds, record.trial)

    return sorted(records.values(), key=key)


def is_candidate(record: Record) -> bool:
    """Whether a trial can win: it ended well and left a checkpoint of its best epoch."""
    ended_well = record.status in ("finished", "stopped")
    return ended_well and record.objective is not None and record.checkpoint is not None


def winner_of(records: Mapping[str, Record], objective: ObjectiveSpec) -> Record | None:
    """The best candidate, or None while no trial has ended well."""
    candidates = [r for r in ranked(records, objective) if is_candidate(r)]
    return candidates[0] if candidates else None


def leaderboard(
    starts: Mapping[str, TrialStart],
    records: Mapping[str, Record],
    objective: ObjectiveSpec,
    *,
    status: SweepStatus,
    seconds: float,
    exhausted: bool = False,
) -> dict[str, Any]:
    """The content of `leaderboard.json`."""
    order = ranked(records, objective)
    return {
        "objective": objective.to_json(),
        "rows": [_row(rank, starts[r.trial], r) for rank, r in enumerate(order, start=1)],
        "baseline": _best_of("scratch", order),
        "floor": _best_of("zero-shot", order),
        "status": status,
        "exhausted": exhausted,
        "seconds": round(seconds, 3),
    }


def _best_of(strategy: str, order: Sequence[Record]) -> str | None:
    """The best trial of a strategy, if it has a candidate."""
    mine = (r for r in order if r.experiment.strategy.strategy == strategy and is_candidate(r))
    return next((record.trial for record in mine), None)


def write_leaderboard(
    folder: SweepFolder,
    objective: ObjectiveSpec,
    *,
    status: SweepStatus,
    seconds: float,
    exhausted: bool = False,
) -> dict[str, Any]:
    """Make `leaderboard.json` anew from the records."""
    content = leaderboard(
        folder.starts(),
        folder.records(),
        objective,
        status=status,
        seconds=seconds,
        exhausted=exhausted,
    )
    folder.write("leaderboard.json", content)
    return content


def _told_apart(record: Record) -> dict[str, Any]:
    """What two blocks of one strategy may differ in without searching it."""
    adapter = record.params.get("adapter", "none")
    return {} if adapter == "none" else {"adapter": adapter}


def _row(rank: int, start: TrialStart, record: Record) -> dict[str, Any]:
    return {
        "rank": rank,
        "trial": record.trial,
        "status": record.status,
        "reason": record.reason,
        "block": start.block,
        "strategy": record.experiment.strategy.strategy,
        "backbone": record.experiment.backbone.name,
        "searched": _told_apart(record) | start.searched,
        "default": start.default,
        "objective": record.objective,
        "validation": record.validation,
        "best_epoch": record.best_epoch,
        "alpha": None if record.interpolation is None else record.interpolation.alpha,
        "n_epochs": len(record.epochs),
        "seconds": record.seconds,
        "images_per_s": record.images_per_s,
        "peak_memory_bytes": record.peak_memory_bytes,
    }
