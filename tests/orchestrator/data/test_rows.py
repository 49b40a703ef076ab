"""A reading that is kept is the reading that comes back."""

from __future__ import annotations

from pathlib import Path

from orchestrator.data.audit import AuditFinding
from orchestrator.data.blobs import BlobWriter
from orchestrator.data.rows import Reading, Row, store_reading, stored_reading


def test_findings_keep_every_character_that_some_call_a_line_end(tmp_path: Path) -> None:
    with BlobWriter(tmp_path / "blobs") as writer:
        rows = (Row("t.jsonl#0", ("a",), writer.add(b"one"), annotation="{}", group="g"),)
        blobs = writer.close()
    odd = "one\u2028two\u2029three\x85four\x0bfive\x1csix\nseven"
    findings = (
        AuditFinding.of("tags", "warning", f"1 tag: {odd}", [odd]),
        AuditFinding.of("encoding", "note", "another", count=3),
    )
    for number, found in enumerate([findings, ()]):
        reading = Reading("t.jsonl", rows, blobs, found)
        path = tmp_path / "readings" / f"{number}.arrow"
        path.parent.mkdir(exist_ok=True)
        store_reading(path, reading)
        assert stored_reading(path, "t.jsonl") == reading
