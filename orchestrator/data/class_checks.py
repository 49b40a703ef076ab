"""Findings on classes: too few, too small, unequal, unknown, or spelt alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from orchestrator.data.audit import AuditFinding
from orchestrator.data.examples import SPLITS, Example, Split
from orchestrator.data.labels import differing_by_case
from orchestrator.spec.parts import TaskKind
from orchestrator.tasks.question_answering import ANSWER

FEW_IMAGES = 10  # training images of a class, below which a warning is due
IMBALANCE_RATIO = 3.0  # largest class to smallest, from which accuracy misleads


def check_labels(
    train: frozenset[str], evaluation: dict[Split, set[str]]
) -> Iterator[AuditFinding]:
    """Labels of validation and test against those of train, as written by the user."""
    for split, labels in evaluation.items():
        if unknown := sorted(labels - train):
            yield AuditFinding.of(
                "unknown-label",
                "error",
                f"{len(unknown)} labels of {split} do not occur in train, so they cannot be "
                "learnt. Add training images of them, or correct or remove them",
                map(repr, unknown),
            )
        if missing := sorted(train - labels):
            yield AuditFinding.of(
                "missing-class",
                "warning",
                f"{len(missing)} classes of train do not occur in {split} and are not measured",
                map(repr, missing),
            )
    if variants := differing_by_case({*train, *(name for s in evaluation.values() for name in s)}):
        yield AuditFinding.of(
            "case-variants",
            "warning",
            f"{len(variants)} labels are written with different case and count as different "
            "classes. If they are one, rename them",
            [" / ".join(group) for group in variants],
        )


def check_trainable(
    train: Sequence[Example], labels: frozenset[str], *, multilabel: bool, will_split: bool
) -> Iterator[AuditFinding]:
    """Whether each class has the images it needs, before validation images are held out.

    Args:
        train: Usable training examples.
        labels: Every class, also those of which no usable image is left.
        multilabel: Whether an image may have any number of labels.
        will_split: Whether validation is to be taken from `train`.
    """
    if not multilabel and len(labels) == 1:
        yield AuditFinding.of(
            "single-class",
            "error",
            "all images have the same label, so there is nothing to tell apart. "
            "Add images of another class",
            map(repr, labels),
        )
    contents: dict[str, set[str]] = defaultdict(set)
    for row in train:
        for label in row.labels:
            contents[label].add(row.content)
    needed = 2 if will_split else 1
    if small := sorted(label for label in labels if len(contents[label]) < needed):
        purpose = "one to train and one to validate on" if will_split else "one to train on"
        yield AuditFinding.of(
            "too-few-images",
            "error",
            f"{len(small)} classes have fewer usable distinct training images than the {needed} "
            f"they need, {purpose}. Add images, or remove these classes",
            [f"{label!r}: {len(contents[label])}" for label in small],
        )


def check_answers(labels: frozenset[str], task: TaskKind) -> Iterator[AuditFinding]:
    """Whether the texts of train have anything that answers could point to."""
    if task == "token-classification" and not labels:
        what = "an entity"
    elif task == "question-answering" and ANSWER not in labels:
        what = "an answer"
    else:
        return
    message = f"no text of train has {what}, so there is nothing to learn. Annotate some"
    yield AuditFinding.of("single-class", "error", message)


def check_counts(examples: Sequence[Example], labels: frozenset[str]) -> Iterator[AuditFinding]:
    """Labels of which there is little to learn from, once every example has its split."""
    counts = Counter(dict.fromkeys(labels, 0))
    counts.update(label for row in examples if row.split == "train" for label in row.labels)
    if few := sorted(label for label in labels if 0 < counts[label] < FEW_IMAGES):
        yield AuditFinding.of(
            "few-images",
            "warning",
            f"{len(few)} classes have fewer than {FEW_IMAGES} training images; "
            "their metrics will be noisy",
            [f"{label!r}: {counts[label]}" for label in few],
        )


def check_balance(
    examples: Sequence[Example], labels: frozenset[str], *, multilabel: bool
) -> Iterator[AuditFinding]:
    """Small and unequal classes, once every example has its split."""
    yield from check_counts(examples, labels)
    counts = Counter(label for row in examples if row.split == "train" for label in row.labels)
    yield from _imbalance({label: count for label, count in counts.items() if count})
    if multilabel:
        yield from _multilabel_balance(examples, labels)


def classes_by_split(
    examples: Sequence[Example], labels: frozenset[str]
) -> dict[str, dict[str, int]]:
    """How many images each class has in each split that there is."""
    splits = [split for split in SPLITS if any(row.split == split for row in examples)]
    counts: dict[str, dict[str, int]] = {
        label: dict[str, int].fromkeys(splits, 0) for label in sorted(labels)
    }
    for row in examples:
        for label in row.labels:
            if label in counts:
                counts[label][row.split] += 1
    return counts


def _imbalance(counts: dict[str, int]) -> Iterator[AuditFinding]:
    if len(counts) < 2:
        return
    largest = max(sorted(counts), key=counts.__getitem__)
    smallest = min(sorted(counts), key=counts.__getitem__)
    ratio = counts[largest] / counts[smallest]
    if ratio >= IMBALANCE_RATIO:
        yield AuditFinding.of(
            "imbalance",
            "warning",
            f"the largest class has {ratio:.3g} times the training images of the smallest, which "
            "accuracy would hide. Use objective metric f1_macro and class_weights: balanced",
            [f"{label!r}: {counts[label]}" for label in (largest, smallest)],
        )


def _multilabel_balance(
    examples: Sequence[Example], labels: frozenset[str]
) -> Iterator[AuditFinding]:
    train = [row for row in examples if row.split == "train"]
    everywhere = sorted(labels.intersection(*(row.labels for row in train))) if train else []
    if everywhere:
        yield AuditFinding.of(
            "one-sided-class",
            "warning",
            f"{len(everywhere)} labels are on every training image: there is nothing to tell "
            "apart. Add images without them",
            map(repr, everywhere),
        )
    if unlabelled := [row.uri for row in examples if not row.labels]:
        yield AuditFinding.of(
            "unlabelled",
            "note",
            f"{len(unlabelled)} images have no label and count as examples of none",
            unlabelled,
        )
