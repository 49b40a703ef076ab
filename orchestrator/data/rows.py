"""What was read of a location: a row for each labelled example, kept between runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.data.audit import AuditFinding
from orchestrator.data.blobs import map_table, write_table

READINGS_FORMAT = 4  # of stored readings


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled image or text, not looked at yet.

    `blob` is its row in the reading's blob file, -1 for one in a file of its own. `version`
    changes with the bytes; None when it has not been asked for yet. `annotation` and `group` are as
    for an `Example`.
    """

    uri: str
    labels: tuple[str, ...]
    blob: int = -1
    version: str | None = None
    annotation: str = ""
    group: str = ""


@dataclass(frozen=True)
class Reading:
    """All rows of one location, in its order, and what was noticed."""

    location: str
    rows: tuple[Row, ...]
    blobs: Path | None = None
    findings: tuple[AuditFinding, ...] = field(default=())


def store_reading(path: Path, reading: Reading) -> None:
    """Keep a reading beside its blobs, so that bytes are streamed only once."""
    assert reading.blobs is not None
    spellings = [finding.model_dump_json() for finding in reading.findings]
    table = pa.table(
        {
            "uri": pa.array([row.uri for row in reading.rows], pa.large_string()),
            "labels": pa.array([row.labels for row in reading.rows], pa.list_(pa.string())),
            "blob": pa.array([row.blob for row in reading.rows], pa.int64()),
            "annotation": pa.array([row.annotation for row in reading.rows], pa.large_string()),
            "group": pa.array([row.group for row in reading.rows], pa.large_string()),
        }
    ).replace_schema_metadata({"blobs": reading.blobs.name, "findings": "\n".join(spellings)})
    write_table(path, table)


def stored_reading(path: Path, location: str) -> Reading:
    """The reading that `store_reading` kept.

    Raises:
        OSError: There is none, or its blobs are gone.
    """
    table = map_table(path)
    metadata: dict[bytes, bytes] = table.schema.metadata
    blobs = path.parent.parent / "blobs" / metadata[b"blobs"].decode()
    blobs.stat()
    findings = metadata[b"findings"].decode().split("\n")
    names = ("uri", "labels", "blob", "annotation", "group")
    columns: list[Any] = [table.column(name).to_pylist() for name in names]
    rows = tuple(
        Row(uri, tuple(labels), blob, annotation=annotation, group=group)
        for uri, labels, blob, annotation, group in zip(*columns, strict=True)
    )
    found = tuple(AuditFinding.model_validate_json(line) for line in findings if line)
    return Reading(location, rows, blobs, found)
