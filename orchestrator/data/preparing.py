"""A DataSpec → Examples that can be trained on, and the Audit that says so.

read → decode once → quarantine → leave out training copies → hold out validation → write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.data.audit import Audit, AuditFinding, Quarantined, worst_first
from orchestrator.data.class_checks import (
    check_answers,
    check_balance,
    check_counts,
    check_labels,
    check_trainable,
    classes_by_split,
)
from orchestrator.data.duplicates import remove_training_copies
from orchestrator.data.examples import SPLITS, Example, Examples, Split
from orchestrator.data.reading import read_location
from orchestrator.data.rows import Reading
from orchestrator.data.scanning import Progress, Scanned, scan
from orchestrator.data.splitting import held_out
from orchestrator.spec.data import DataSpec
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import TaskKind, by_position, has_label_sets, modality_of


@dataclass(frozen=True)
class Prepared:
    """Data that is ready, and what was found on the way."""

    examples: Examples
    audit: Audit


def prepare_data(
    spec: DataSpec, *, task: TaskKind, seed: int, cache: Path, progress: Progress | None = None
) -> Prepared:
    """Read, audit, split and index the data that `spec` names.

    Args:
        spec: Locations, with local paths absolute.
        task: Decides whether an image has one label or any number.
        seed: Of the validation split, where it is a fraction.
        cache: Local folder that outlives the process; makes a second start on unchanged data quick.
        progress: Called with the number of images decoded and of all.

    Raises:
        DataError: The data cannot be used; all errors of the audit at once.
    """
    survey = _survey(spec, task=task, seed=seed, cache=cache, progress=progress)
    survey.audit.raise_errors()
    return Prepared(survey.written(cache), survey.audit)


def audit_data(
    spec: DataSpec, *, task: TaskKind, seed: int, cache: Path, progress: Progress | None = None
) -> Audit:
    """As `prepare_data`, but findings that make the data unusable are returned with the others.

    Raises:
        DataError: The data cannot even be read as labelled images.
    """
    return _survey(spec, task=task, seed=seed, cache=cache, progress=progress).audit


@dataclass(frozen=True)
class _Survey:
    audit: Audit
    examples: tuple[Example, ...]
    labels: frozenset[str]
    multilabel: bool
    blobs: tuple[Path, ...]

    def written(self, cache: Path) -> Examples:
        """The examples in their folder, whose name is a digest of all that is in it."""
        rows = sorted([r.uri, r.content, r.split, *r.labels, r.annotation] for r in self.examples)
        name = digest_of([rows, sorted(self.labels), [path.name for path in self.blobs]])
        folder = cache / "examples" / name[:32]
        if folder.exists():
            return Examples.open(folder)
        return Examples.write(
            folder,
            self.examples,
            labels=sorted(self.labels),
            multilabel=self.multilabel,
            blobs=self.blobs,
        )


def _survey(
    spec: DataSpec, *, task: TaskKind, seed: int, cache: Path, progress: Progress | None
) -> _Survey:
    multilabel, modality = has_label_sets(task), modality_of(task)
    fraction = spec.validation if isinstance(spec.validation, float) else None
    places = _locations(spec)
    readings = [
        read_location(place, spec, split=split, task=task, cache=cache)
        for split, place in places.items()
    ]
    scans = scan(readings, modality=modality, cache=cache, progress=progress)
    blobs = tuple(dict.fromkeys(r.blobs for r in readings if r.blobs is not None))
    decoded, quarantined = decoded_rows(list(places), readings, scans, blobs)
    label_sets = {
        split: {label for row in reading.rows for label in row.labels}
        for split, reading in zip(places, readings, strict=True)
    }
    labels = frozenset(label_sets.pop("train"))

    kept, copies = remove_training_copies(decoded)
    train = [row for row in kept if row.split == "train"]
    examples = _split(kept, fraction, seed) if fraction is not None else kept
    findings = [
        *(finding for reading in readings for finding in reading.findings),
        *encoding_findings(readings, scans),
        *quarantine_findings(quarantined, sum(len(r.rows) for r in readings), spec.bad_fraction),
        *_empty_splits(list(places), kept),
        *check_labels(labels, label_sets),
        *copies,
    ]
    if by_position(task):
        findings += [
            *check_answers(labels, task),
            *check_counts(examples, labels),
            *_shared_contexts(examples),
        ]
    else:
        findings += [
            *check_trainable(train, labels, multilabel=multilabel, will_split=fraction is not None),
            *check_balance(examples, labels, multilabel=multilabel),
            *(_one_sided(examples, labels) if fraction is not None and multilabel else ()),
        ]
    audit = Audit(
        faults=worst_first(finding.about(modality) for finding in findings),
        quarantined=tuple(quarantined),
        images=dict(Counter(row.split for row in examples)),
        classes=classes_by_split(examples, labels),
    )
    return _Survey(audit, tuple(examples), labels, multilabel, blobs)


def _locations(spec: DataSpec) -> dict[Split, str]:
    places: dict[Split, str] = {"train": spec.train}
    if isinstance(spec.validation, str):
        places["validation"] = spec.validation
    if spec.test is not None:
        places["test"] = spec.test
    return places


def decoded_rows(
    splits: Sequence[Split],
    readings: Sequence[Reading],
    scans: Sequence[Sequence[Scanned]],
    blobs: Sequence[Path],
) -> tuple[list[Example], list[Quarantined]]:
    """Rows with their content, and those that have none."""
    examples: list[Example] = []
    quarantined: list[Quarantined] = []
    for split, reading, results in zip(splits, readings, scans, strict=True):
        number = blobs.index(reading.blobs) if reading.blobs is not None else -1
        for row, result in zip(reading.rows, results, strict=True):
            if result.fault:
                quarantined.append(Quarantined(uri=row.uri, split=split, reason=result.fault))
            else:
                blob_file = number if row.blob >= 0 else -1
                examples.append(
                    Example(
                        uri=row.uri,
                        content=result.content,
                        split=split,
                        labels=row.labels,
                        blob_file=blob_file,
                        blob=row.blob,
                        annotation=row.annotation,
                        group=row.group,
                    )
                )
    return examples, quarantined


def _split(examples: Sequence[Example], fraction: float, seed: int) -> list[Example]:
    """The examples with validation held out of train."""
    train = [row for row in examples if row.split == "train"]
    mask = held_out(
        [row.group or row.content for row in train],
        [row.labels for row in train],
        fraction=fraction,
        seed=seed,
    )
    divided = [
        replace(row, split="validation") if held else row
        for row, held in zip(train, mask, strict=True)
    ]
    return divided + [row for row in examples if row.split != "train"]


def quarantine_findings(
    quarantined: Sequence[Quarantined], total: int, bad_fraction: float
) -> Iterator[AuditFinding]:
    if not quarantined:
        return
    share = len(quarantined) / total
    counted = f"{len(quarantined):,} of {total:,} images ({share:.1%}) cannot be decoded"
    items = [f"{bad.uri}: {bad.reason}" for bad in quarantined]
    if share > bad_fraction:
        message = (
            f"{counted}, more than data.bad_fraction {bad_fraction:g} allows. "
            "Repair or remove them, or raise data.bad_fraction"
        )
        yield AuditFinding.of("undecodable", "error", message, items)
    else:
        yield AuditFinding.of("undecodable", "warning", f"{counted} and are left out", items)


def encoding_findings(
    readings: Sequence[Reading], scans: Sequence[Sequence[Scanned]]
) -> Iterator[AuditFinding]:
    """A note on texts whose encoding had to be assumed."""
    assumed = [
        row.uri
        for reading, results in zip(readings, scans, strict=True)
        for row, result in zip(reading.rows, results, strict=True)
        if result.assumed
    ]
    if assumed:
        yield AuditFinding.of(
            "encoding",
            "note",
            f"{len(assumed)} texts are not UTF-8 and were read as Windows-1252",
            assumed,
        )


def _empty_splits(splits: Sequence[Split], kept: Sequence[Example]) -> Iterator[AuditFinding]:
    full = {row.split for row in kept}
    if empty := [split for split in splits if split not in full]:
        yield AuditFinding.of(
            "no-images",
            "error",
            f"no usable image is left in {' and '.join(empty)}. Give a location with images",
        )


def _one_sided(examples: Sequence[Example], labels: frozenset[str]) -> Iterator[AuditFinding]:
    """Classes of a multi-label set that no split of its images puts on both sides."""
    sides = {
        split: {label for row in examples if row.split == split for label in row.labels}
        for split in SPLITS
    }
    if one_sided := sorted(labels - (sides["train"] & sides["validation"])):
        yield AuditFinding.of(
            "one-sided-class",
            "warning",
            f"{len(one_sided)} labels are in only one of train and validation, because they occur "
            "together with other rare ones. Add images of them",
            map(repr, one_sided),
        )


def _shared_contexts(examples: Sequence[Example]) -> Iterator[AuditFinding]:
    """Contexts on which train asks as well as validation or test."""
    train = {row.group for row in examples if row.split == "train" and row.group}
    shared = [row for row in examples if row.split != "train" and row.group in train]
    if shared:
        n_contexts = len({row.group for row in shared})
        yield AuditFinding.of(
            "shared-context",
            "warning",
            f"{n_contexts} contexts of validation or test are in train too, with other questions: "
            "scores will flatter the model. Keep all questions on a context in one split",
            [row.uri for row in shared],
            count=n_contexts,
        )
