"""Reading a sweep's folder into a SweepView; what is missing or damaged becomes a note."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import IntegrityError, SpecError
from orchestrator.report.predictions import Predictions, read_predictions
from orchestrator.report.sweep_view import HeldOutScore, Json, SweepView, TrialView
from orchestrator.report.wording import finite
from orchestrator.spec import mirror
from orchestrator.spec.parts import ObjectiveSpec, TaskSpec
from orchestrator.spec.record import Record


def read_sweep(sweep_dir: Path) -> SweepView:
    """Everything the folder holds.

    Raises:
        SpecError: The folder is no sweep's.
    """
    if not (sweep_dir / "sweep.json").is_file():
        raise SpecError(
            f"{sweep_dir} is no sweep folder: it has no sweep.json. "
            "Name the folder that `orchestrator sweep` printed."
        )
    notes: list[str] = []
    sweep = _read_json(sweep_dir / "sweep.json", notes)
    board = _read_json(sweep_dir / "leaderboard.json", notes)
    records = _read_records(sweep_dir / "trials", notes)
    spec = _mapping(sweep.get("spec"))
    objective = _objective(board.get("objective") or spec.get("objective"), records)
    trials = _trials(board, records, objective)
    task = _task(sweep, records)
    test_json = _read_json(sweep_dir / "test.json", notes)
    winner = next((trial for trial in trials if trial.scored), None)
    test = _test(test_json, winner, notes)
    baseline = next((t for t in trials if t.scored and t.id == board.get("baseline")), None)
    return SweepView(
        folder=sweep_dir,
        name=str(sweep.get("name") or sweep_dir.name),
        digest=str(sweep.get("digest") or ""),
        created_at=str(sweep.get("created_at") or ""),
        spec=spec,
        task=task,
        data=_mapping(sweep.get("data")),
        environment=_mapping(sweep.get("environment")),
        plan=_read_json(sweep_dir / "plan.json", notes),
        objective=objective,
        trials=trials,
        baseline=baseline,
        seconds=finite(board.get("seconds")),
        status=str(board.get("status") or "unknown"),
        test=test,
        predictions=_winner_predictions(sweep_dir, winner, task, tested=test, notes=notes),
        notes=tuple(notes),
    )


def read_validation(view: SweepView, trial: TrialView) -> Predictions | None:
    """A Trial's predictions on the validation split, None where there are no readable ones."""
    if view.task is None:
        return None
    try:
        return _validation(view.folder, trial, view.task)
    except IntegrityError:
        return None


def _read_json(path: Path, notes: list[str]) -> Json:
    if not path.is_file():
        return {}
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as err:
        notes.append(f"{path.name} could not be read: {err}")
        return {}


def _read_records(folder: Path, notes: list[str]) -> dict[str, Record]:
    records = {}
    for path in sorted(folder.glob("*/record.json")):
        try:
            records[path.parent.name] = Record.model_validate_json(path.read_bytes())
        except ValidationError as err:
            first = err.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            notes.append(
                f"The record of trial {path.parent.name} is unreadable: {where}: {first['msg']}."
            )
    return records


def _objective(given: object, records: Mapping[str, Record]) -> ObjectiveSpec:
    try:
        return ObjectiveSpec.model_validate(given)
    except ValidationError:
        first = next(iter(records.values()), None)
        return first.experiment.objective if first else ObjectiveSpec()


def _trials(
    board: Json, records: Mapping[str, Record], objective: ObjectiveSpec
) -> tuple[TrialView, ...]:
    """The leaderboard's rows, then the records that it does not list, best first."""
    rows = [row for row in board.get("rows") or () if isinstance(row, Mapping)]
    listed = [_from_row(row, records.get(str(row.get("trial")))) for row in rows]
    known = {trial.id for trial in listed}
    others = [_from_record(id_, record) for id_, record in records.items() if id_ not in known]
    sign = -1 if objective.mode == "max" else 1

    def place(trial: TrialView) -> tuple[bool, int, float]:
        rank = trial.rank if trial.rank is not None else 10**9
        return not trial.scored, rank, sign * (trial.objective or 0.0)

    return tuple(sorted([*listed, *others], key=place))


def _from_row(row: Json, record: Record | None) -> TrialView:
    strategy = str(row.get("strategy") or "")
    block = row.get("block")
    best_epoch = finite(row.get("best_epoch"))
    rank = finite(row.get("rank"))
    return TrialView(
        id=str(row.get("trial") or ""),
        rank=None if rank is None else int(rank),
        status=str(row.get("status") or "unknown"),
        reason=str(row.get("reason") or ""),
        block="" if block is None else str(block),
        strategy=strategy,
        backbone=str(row.get("backbone") or ""),
        searched=_searched(row.get("searched")),
        objective=finite(row.get("objective")),
        validation=_metrics(row.get("validation")),
        best_epoch=None if best_epoch is None else int(best_epoch),
        n_epochs=int(finite(row.get("n_epochs")) or 0),
        seconds=finite(row.get("seconds")) or 0.0,
        images_per_s=finite(row.get("images_per_s")) or 0.0,
        peak_memory_bytes=int(finite(row.get("peak_memory_bytes")) or 0),
        default=bool(row.get("default")),
        record=record,
    )


def _from_record(id_: str, record: Record) -> TrialView:
    """Without a row, what was searched is unknown: whatever differs from its vetted default."""
    strategy, fields = record.experiment.strategy, type(record.experiment.strategy).model_fields
    changed = {k: v for k, v in record.params.items() if getattr(strategy, k) != fields[k].default}
    return TrialView(
        id=id_,
        status=record.status,
        reason=record.reason,
        strategy=strategy.strategy,
        backbone=record.experiment.backbone.name,
        searched=changed,
        objective=record.objective,
        validation=record.validation,
        best_epoch=record.best_epoch,
        n_epochs=len(record.epochs),
        seconds=record.seconds,
        images_per_s=record.images_per_s,
        peak_memory_bytes=record.peak_memory_bytes,
        record=record,
    )


def _searched(given: object) -> Json:
    return {str(k): v for k, v in _mapping(given).items() if k not in {"strategy", "backbone"}}


def _task(sweep: Json, records: Mapping[str, Record]) -> TaskSpec | None:
    first = next(iter(records.values()), None)
    if first is not None:
        return first.experiment.task
    try:
        return TaskSpec.model_validate({"kind": sweep.get("task"), "labels": sweep.get("labels")})
    except ValidationError:
        return None


def _test(given: Json, winner: TrialView | None, notes: list[str]) -> HeldOutScore | None:
    if not given:
        return None
    if winner is None or str(given.get("trial")) != winner.id:
        notes.append(f"test.json is about trial {given.get('trial')}, which is not the winner.")
        return None
    n = finite(given.get("n"))
    pairs = {key: pair for key, pair in _mapping(given.get("intervals")).items() if _is_pair(pair)}
    return HeldOutScore(
        metrics=_metrics(given.get("metrics")),
        n=None if n is None else int(n),
        intervals={key: (float(pair[0]), float(pair[1])) for key, pair in pairs.items()},
        seconds=finite(given.get("seconds")),
    )


def _winner_predictions(
    folder: Path,
    winner: TrialView | None,
    task: TaskSpec | None,
    *,
    tested: HeldOutScore | None,
    notes: list[str],
) -> Predictions | None:
    if winner is None or task is None:
        return None
    places: list[Callable[[], Predictions | None]] = [lambda: _validation(folder, winner, task)]
    if tested is not None:
        places.insert(0, lambda: _tested(folder, task))
    for read in places:
        try:
            found = read()
        except IntegrityError as err:
            notes.append(str(err))
            continue
        if found is not None and len(found):
            return found
    return None


def _tested(folder: Path, task: TaskSpec) -> Predictions | None:
    return read_predictions(mirror.fetch(folder / "test.arrow"), split="test", task=task)


def _validation(folder: Path, trial: TrialView, task: TaskSpec) -> Predictions | None:
    path = folder / "trials" / trial.id / "validation.arrow"
    written = trial.record.files.get(path.name) if trial.record is not None else None
    return read_predictions(mirror.fetch(path, sha256=written), split="validation", task=task)


def _metrics(given: object) -> dict[str, float]:
    pairs = ((str(key), finite(shown)) for key, shown in _mapping(given).items())
    return {key: known for key, known in pairs if known is not None}


def _mapping(given: object) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) else {}


def _is_pair(given: object) -> bool:
    return isinstance(given, list | tuple) and len(given) == 2 and None not in map(finite, given)
