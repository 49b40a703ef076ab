"""A labelled set to measure a finished model on: its labels are the model's, all of it is test."""

from __future__ import annotations

from pathlib import Path

from orchestrator.data.audit import Audit, worst_first
from orchestrator.data.class_checks import check_labels, classes_by_split
from orchestrator.data.examples import Examples
from orchestrator.data.preparing import Prepared, decoded_rows, quarantine_findings
from orchestrator.data.reading import read_location
from orchestrator.data.scanning import Progress, scan
from orchestrator.spec.data import DataSpec
from orchestrator.spec.parts import TaskKind, TaskSpec, has_label_sets, modality_of


def evaluation_set(
    location: str, *, task: TaskSpec, cache: Path, progress: Progress | None = None
) -> Prepared:
    """Read and audit a labelled set for a model that knows `task.labels`.

    Args:
        location: As `data.test` takes it, a local path absolute.
        task: The model's.
        cache: Local folder; the index is written below it.
        progress: Called with the number of images decoded and of all.

    Raises:
        DataError: The set cannot be used: too much of it cannot be decoded, or it has a label that
            the model does not know.
    """
    spec = DataSpec(train=location)
    multilabel, modality = has_label_sets(task.kind), modality_of(task.kind)
    reading = read_location(location, spec, split="test", task=task.kind, cache=cache)
    blobs = (reading.blobs,) if reading.blobs is not None else ()
    scans = scan([reading], modality=modality, cache=cache, progress=progress)
    examples, quarantined = decoded_rows(["test"], [reading], scans, blobs)
    known = frozenset(task.labels)
    found = {label for row in reading.rows for label in row.labels}
    findings = [
        *reading.findings,
        *quarantine_findings(quarantined, len(reading.rows), spec.bad_fraction),
        *check_labels(known, {"test": found}),
    ]
    audit = Audit(
        faults=worst_first(finding.about(modality) for finding in findings),
        quarantined=tuple(quarantined),
        images={"test": len(examples)},
        classes=classes_by_split(examples, known),
    )
    audit.raise_errors()
    written = Examples.write(
        cache / "evaluation", examples, labels=task.labels, multilabel=multilabel, blobs=blobs
    )
    return Prepared(written, audit)


def labels_in(location: str, *, cache: Path) -> tuple[str, ...]:
    """The labels that a labelled set of images has, sorted.

    Raises:
        DataError: It cannot be read.
    """
    task: TaskKind = "zero-shot-image-classification"
    spec = DataSpec(train=location)
    reading = read_location(location, spec, split="test", task=task, cache=cache)
    return tuple(sorted({label for row in reading.rows for label in row.labels}))
