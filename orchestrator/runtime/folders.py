"""The folders of a sweep and of a trial: what lies where, and how it is read and written."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from orchestrator.data.examples import Examples, Split
from orchestrator.errors import IntegrityError, SweepLockedError
from orchestrator.runtime.lease import OWNER, leased
from orchestrator.spec import mirror
from orchestrator.spec.durable import write_durably, write_json
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.frozen import Frozen
from orchestrator.spec.parts import by_position
from orchestrator.spec.record import Record
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tasks.annotations import text_of, to_json
from orchestrator.tasks.task import Said, Task, Truth

EXPERIMENT = "experiment.json"
RECORD = "record.json"
_SPAN = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("score", pa.float32())])


class TrialStart(Frozen):
    """What is known of a Trial before it starts: `experiment.json`. `block` is a Block's digest."""

    experiment: Experiment
    block: str
    searched: dict[str, Any]
    default: bool
    attempt: int


@dataclass(frozen=True)
class TrialFolder:
    """`trials/<id>`: one trial's files."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints lie."""
        return self.root / "checkpoints"

    def write_start(self, start: TrialStart) -> None:
        """Write `experiment.json`, before the trial starts."""
        write_json(self.root / EXPERIMENT, start.to_json())

    def start(self) -> TrialStart:
        """What `experiment.json` says."""
        return TrialStart.model_validate_json((self.root / EXPERIMENT).read_bytes())

    def refresh(self) -> None:
        """Make `experiment.json` what the driver wrote last; it may run on another node."""
        mirror.refresh(self.root / EXPERIMENT)

    def write_record(self, record: Record) -> None:
        """Write `record.json`, once: a record that is there already stays."""
        path = mirror.fetch(self.root / RECORD)
        if not path.exists():
            write_json(path, record.to_json())

    def record(self) -> Record | None:
        """The record, or None while the trial has not ended; at a URI it is looked for there.

        Raises:
            IntegrityError: The file is there and is no record.
        """
        mirror.fetch(self.root / RECORD)
        return self.known_record()

    def known_record(self) -> Record | None:
        """The record that this node has; errors as in `record`."""
        path = self.root / RECORD
        try:
            return Record.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as err:
            where = mirror.location_of(self.root)
            raise IntegrityError(
                f"{where}/{path.name} is damaged ({err.error_count()} faults). Delete the folder "
                f"{where} to run this trial again"
            ) from err


class SweepFolder:
    """A sweep's folder. The set of its records is its state; everything else can be remade.

    At a URI, what is read of it is what this node has: the driver refreshes that when it takes the
    sweep, and looks for the record of each trial that has ended; other verbs refresh it first.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def trial(self, trial: str) -> TrialFolder:
        """The folder of a trial by its id."""
        return TrialFolder(self.root / "trials" / trial)

    def head(self, trial: str) -> TrialFolder:
        """The folder of a head that was trained for fine-tuning trials to start from: no trial."""
        return TrialFolder(self.root / "heads" / trial)

    def parent(self, trial: str) -> TrialFolder:
        """The folder of a trial, or of a head, that another trial starts from."""
        head = self.head(trial)
        return head if mirror.fetch(head.root / EXPERIMENT).exists() else self.trial(trial)

    def trials(self) -> list[TrialFolder]:
        """Every trial that was ever started, by id."""
        return [
            TrialFolder(path.parent)
            for path in sorted((self.root / "trials").glob(f"*/{EXPERIMENT}"))
        ]

    def starts(self) -> dict[str, TrialStart]:
        """What each started trial is, by id."""
        return {folder.root.name: folder.start() for folder in self.trials()}

    def records(self) -> dict[str, Record]:
        """The records of all ended trials that this node knows of, by id."""
        found = ((folder.root.name, folder.known_record()) for folder in self.trials())
        return {name: record for name, record in found if record is not None}

    def spec(self) -> SweepSpec:
        """The resolved spec of the sweep.

        Raises:
            IntegrityError: `sweep.json` is missing or damaged.
        """
        try:
            return SweepSpec.model_validate((self.read("sweep.json") or {})["spec"])
        except (KeyError, ValueError) as err:
            raise IntegrityError(
                f"{mirror.location_of(self.root)}/sweep.json is missing or damaged. Running the "
                "sweep's command again writes it"
            ) from err

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or None when it is not there."""
        try:
            content: dict[str, Any] = json.loads((self.root / name).read_bytes())
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: Any) -> None:
        """Durably write a JSON file of the folder."""
        write_json(self.root / name, content)

    def look_up(self, trials: Iterable[TrialFolder]) -> None:
        """Make starts and records of some trials what the URI has; quicker than one by one."""
        names = {
            f"{trial.root.relative_to(self.root).as_posix()}/{file}"
            for trial in trials
            for file in (EXPERIMENT, RECORD)
        }
        mirror.refresh_tree(self.root, wanted=names.__contains__)

    def refresh(self) -> None:
        """Make what is here of the sweep what its URI has, for a verb that only reads."""
        with contextlib.suppress(SweepLockedError), self._locked_here():
            self._refresh()  # unless its driver runs on this node, who has it all

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep against other processes; the lock ends with this process, however it ends.

        At a URI other machines are kept off by a lease, and what is here is made what is there.

        Raises:
            SweepLockedError: Another process holds it.
        """
        with self._locked_here(), leased(self.root, waiting=None):
            self._refresh()
            yield

    def _refresh(self) -> None:
        mirror.refresh_tree(self.root, wanted=_is_state)

    @contextmanager
    def _locked_here(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                file.seek(0)
                raise SweepLockedError(
                    f"{mirror.location_of(self.root)} is being run by process "
                    f"{file.read().strip() or 'unknown'}. Wait for it, or stop it and run the same "
                    "command again"
                ) from err
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def _is_state(name: str) -> bool:
    """Whether a file is read by drivers and reports; others are fetched when they are needed."""
    if "/" not in name:
        return name != OWNER
    return name.endswith((f"/{EXPERIMENT}", f"/{RECORD}"))


def write_predictions(
    path: Path,
    *,
    task: Task,
    examples: Examples,
    split: Split,
    said: Said,
    truth: Truth,
    bases: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Durably write what a model says of a split beside the truth as an Arrow file.

    Args:
        path: The file.
        task: What is predicted.
        examples: The data set.
        split: Of it.
        said: Of each of the split's examples, in order.
        truth: Of each of them.
        bases: Of some of them, by row: spans of its text with how much the answer rests on each.
    """
    rows = examples.indices(split)
    numbers = [np.asarray(of_example, np.float32).ravel() for of_example in said]
    spans = [(bases or {}).get(int(row)) for row in rows]
    table = pa.table(
        {
            "example": pa.array(rows, pa.int64()),
            "prob": pa.array(numbers, pa.list_(pa.float32())),
            **_true_columns(task, truth),
            "uri": pa.array([examples.uri(int(row)) for row in rows], pa.string()),
            **({"basis": pa.array(spans, pa.list_(_SPAN))} if bases else {}),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_durably(path, sink.getvalue().to_pybytes())


def _true_columns(task: Task, truth: Truth) -> dict[str, Any]:
    """Class numbers; or annotations with their texts, so that a report can show them."""
    if by_position(task.spec.kind):
        texts = pa.array([text_of(annotation) for annotation in truth], pa.string())
        notes = pa.array([to_json(annotation) for annotation in truth], pa.string())
        return {"text": texts, "annotation": notes}
    positive = [[int(t)] if truth.ndim == 1 else np.flatnonzero(t).tolist() for t in truth]
    return {"target": pa.array(positive, pa.list_(pa.int32()))}
