"""The Audit: what was found in the data before any compute was spent on it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from orchestrator.errors import DataError
from orchestrator.spec.frozen import Frozen
from orchestrator.spec.parts import Modality

Severity = Literal["error", "warning", "note"]
Kind = Literal[
    "undecodable",  # files that are left out, and why
    "no-images",  # a split is empty
    "single-class",  # nothing to tell apart
    "too-few-images",  # a class that cannot be trained and validated
    "unknown-label",  # a label of validation or test that train lacks
    "few-images",  # a class with little to learn from
    "imbalance",  # accuracy would hide the small classes
    "missing-class",  # a class that validation or test cannot measure
    "one-sided-class",  # a class on one side of the split only, or that every image has
    "unlabelled",  # images with no label at all in a multi-label set
    "case-variants",  # labels that differ only by case
    "spellings",  # labels that differed by Unicode form or spaces, merged
    "leakage",  # images of validation or test that train had too
    "evaluation-overlap",  # images in validation and in test
    "label-conflict",  # one image, several labels
    "duplicates",  # one image several times in a split
    "loose-files",  # images outside of class folders
    "other-files",  # files that are no images
    "empty-class",  # class folders without an image
    "encoding",  # texts that are not UTF-8
    "empty-text",  # annotated texts without a word
    "long-texts",  # texts of more tokens than an encoder takes at once
    "tags",  # tags that do not follow the one before
    "answer-start",  # answers that stand elsewhere than was said
    "answers-joined",  # one question on one context, answered by several rows
    "answer-absent",  # questions whose context lacks the answer
    "shared-context",  # contexts of validation or test that train has too
]

ITEMS_SHOWN = 20
_IN_MESSAGE = 3


class AuditFinding(Frozen):
    """One thing that was found: a sentence, how often, and the first examples of it."""

    kind: Kind
    severity: Severity
    message: str
    count: int
    items: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        kind: Kind,
        severity: Severity,
        message: str,
        items: Iterable[str] = (),
        *,
        count: int | None = None,
    ) -> AuditFinding:
        """A finding that keeps the first of `items`.

        Args:
            kind: What it is, for programs.
            severity: An error stops; a warning names a risk; a note is for the record.
            message: What it is, for people: one line.
            items: Files, labels or rows that it is about.
            count: How many there are; the number of `items` when not given.
        """
        found = tuple(items)
        return cls(
            kind=kind,
            severity=severity,
            message=message,
            count=len(found) if count is None else count,
            items=found[:ITEMS_SHOWN],
        )

    def about(self, modality: Modality) -> AuditFinding:
        """The finding in the words of another kind of input: it was written of images."""
        message = re.sub(r"\bimage(?=s?\b)", modality, self.message)
        return self.model_copy(update={"message": message})

    def __str__(self) -> str:
        shown = ", ".join(self.items[:_IN_MESSAGE])
        more = ", …" if len(self.items) > _IN_MESSAGE else ""
        return f"{self.severity}: {self.message}{f' ({shown}{more})' if shown else ''}"


class Quarantined(Frozen):
    """A file that cannot be decoded and is therefore left out."""

    uri: str
    split: str
    reason: str


class Audit(Frozen):
    """All findings, worst first, and what is left to work with."""

    faults: tuple[AuditFinding, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    images: dict[str, int] = Field(default_factory=dict, description="usable images by split")
    classes: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="usable images by label, then split"
    )

    @property
    def errors(self) -> tuple[AuditFinding, ...]:
        """The findings that make the data unusable."""
        return tuple(fault for fault in self.faults if fault.severity == "error")

    @property
    def warnings(self) -> tuple[AuditFinding, ...]:
        """The findings that name a risk."""
        return tuple(fault for fault in self.faults if fault.severity == "warning")

    def with_more(self, faults: Iterable[AuditFinding]) -> Audit:
        """The same with further findings."""
        return self.model_copy(update={"faults": worst_first([*self.faults, *faults])})

    def lines(self) -> list[str]:
        """One readable line a finding."""
        return [str(fault) for fault in self.faults]

    def raise_errors(self) -> None:
        """Raise DataError with all errors at once, if there are any."""
        if self.errors:
            raise DataError("\n".join(str(fault).removeprefix("error: ") for fault in self.errors))


def worst_first(faults: Iterable[AuditFinding]) -> tuple[AuditFinding, ...]:
    """Errors, then warnings, then notes; otherwise in the order found."""
    rank = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(faults, key=lambda fault: rank[fault.severity]))
