"""Images that occur more than once: leakage between splits, contradicting labels, plain copies.

Evaluation is never changed: what a user calls validation or test stays whole. Only training copies
are left out, those of evaluated images and those whose copies carry different labels. Plain copies
within train are kept, and stay on one side of a split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from orchestrator.data.audit import AuditFinding
from orchestrator.data.examples import SPLITS, Example, Split

Copies = dict[str, list[Example]]  # by content


def remove_training_copies(
    examples: Sequence[Example],
) -> tuple[list[Example], list[AuditFinding]]:
    """The examples to use, and findings on all that occur more than once.

    Args:
        examples: All splits. Training examples that will be held out later count as train: what is
            left out here is in neither part.
    """
    copies = _copies(examples)
    leaked = {content for content, rows in copies.items() if len({_role(r) for r in rows}) > 1}
    conflicting = {
        content
        for content, rows in copies.items()
        if len({(row.labels, row.annotation) for row in rows}) > 1
    }
    left_out = leaked | conflicting
    kept = [row for row in examples if row.split != "train" or row.content not in left_out]
    findings = [
        *_leakage(copies, leaked),
        *_conflicts(copies, conflicting),
        *_evaluation_overlap(copies),
        *_plain_copies(kept),
    ]
    return kept, findings


def _copies(examples: Iterable[Example]) -> Copies:
    by_content: Copies = defaultdict(list)
    for row in examples:
        by_content[row.content].append(row)
    return {content: rows for content, rows in by_content.items() if len(rows) > 1}


def _role(row: Example) -> str:
    return "train" if row.split == "train" else "evaluation"


def _in_train(copies: Copies, contents: set[str]) -> int:
    return sum(row.split == "train" for content in contents for row in copies[content])


def _same(rows: Iterable[Example]) -> str:
    return " = ".join(f"{row.split} {row.uri}" for row in rows)


def _leakage(copies: Copies, leaked: set[str]) -> Iterator[AuditFinding]:
    if leaked:
        yield AuditFinding.of(
            "leakage",
            "warning",
            f"{len(leaked)} images of validation or test are also in train; "
            f"{_in_train(copies, leaked)} training copies are left out",
            sorted(_same(copies[content]) for content in leaked),
        )


def _conflicts(copies: Copies, conflicting: set[str]) -> Iterator[AuditFinding]:
    if conflicting:
        yield AuditFinding.of(
            "label-conflict",
            "warning",
            f"{len(conflicting)} images occur with different labels; "
            f"{_in_train(copies, conflicting)} training copies are left out, "
            "validation and test are untouched. Correct the labels",
            sorted(
                " = ".join(f"{row.uri} [{', '.join(row.labels)}]" for row in copies[content])
                for content in conflicting
            ),
        )


def _evaluation_overlap(copies: Copies) -> Iterator[AuditFinding]:
    shared = [
        rows for rows in copies.values() if {"validation", "test"} <= {row.split for row in rows}
    ]
    if shared:
        yield AuditFinding.of(
            "evaluation-overlap",
            "warning",
            f"{len(shared)} images are in both validation and test: the test is not independent "
            "of the search. Remove them from one",
            sorted(_same(rows) for rows in shared),
        )


def _plain_copies(kept: Iterable[Example]) -> Iterator[AuditFinding]:
    counts = Counter((row.split, row.content) for row in kept)
    uris: dict[tuple[Split, str], list[str]] = defaultdict(list)
    for row in kept:
        if counts[row.split, row.content] > 1:
            uris[row.split, row.content].append(row.uri)
    for split in SPLITS:
        groups = sorted(" = ".join(names) for (of, _), names in uris.items() if of == split)
        extra = sum(counts[key] - 1 for key in uris if key[0] == split)
        if groups:
            yield AuditFinding.of(
                "duplicates",
                "note",
                f"{len(groups)} images occur more than once in {split}, {extra} copies too many",
                groups,
            )
