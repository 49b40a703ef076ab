"""What a verb's `--json` told, read in a process whose Ray cluster may speak before the verb."""

from __future__ import annotations

import json
from typing import Any


def document(out: str) -> Any:
    """The one JSON document at the end of captured stdout.

    The tests' shared cluster outlives each verb, so its notes about an earlier test may come
    between the test's start and the verb's; from then on stdout is the document's alone.
    """
    notes, found, rest = out.partition("{\n")
    assert found, out
    assert not notes or notes.startswith("\x1b[33m(raylet)"), notes
    return json.loads(found + rest)
