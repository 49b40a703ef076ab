"""Generates the table of open_clip's pretrained weights.

Run it as `python -m orchestrator.models.clip_pretrained`. For each pair of architecture and weights
it says how images were prepared in training, and whether the activation was QuickGELU: what
`orchestrator/spec/clip_models.py` must know without torch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg

from orchestrator.spec.clip_models import TABLE_PATH

COLUMNS = ("mean", "std", "interpolation", "resize_mode", "quick_gelu")


def pretrained_table() -> dict[str, Any]:
    """The table, from the installed library."""
    wants: list[list[Any]] = []
    tags: dict[str, dict[str, int]] = {}
    for architecture, tag in open_clip.list_pretrained():
        found = get_pretrained_cfg(architecture, tag)
        row = json.loads(json.dumps([found.get(column, False) for column in COLUMNS]))
        if row not in wants:
            wants.append(row)
        tags.setdefault(architecture, {})[tag] = wants.index(row)
    return {"columns": list(COLUMNS), "wants": wants, "tags": tags}


def table_text(table: dict[str, Any]) -> str:
    """The table as JSON, one line an architecture."""
    wants = ",\n".join(json.dumps(row) for row in table["wants"])
    tags = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in table["tags"].items())
    return (
        f'{{"generated_from": {json.dumps({"open_clip_torch": open_clip.__version__})},\n'
        f'"columns": {json.dumps(table["columns"])},\n'
        f'"wants": [\n{wants}],\n'
        f'"tags": {{\n{tags}\n}}}}\n'
    )


def main() -> None:
    """Writes the table."""
    table = pretrained_table()
    TABLE_PATH.write_text(table_text(table), encoding="utf-8")
    sys.stderr.write(f"{sum(map(len, table['tags'].values()))} pretrained weights\n")


if __name__ == "__main__":
    main()
