"""What a verb shows: progress on stderr, its result on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

COUNT_INTERVAL_S = 2.0
PIPED_WIDTH = 120  # columns, when the output goes to a file or a program


class Terminal:
    """The person, or with `--json` the program, that reads the output.

    With `as_json`, file descriptor 1 is stderr for the length of the verb, so that whatever Ray or
    a library prints cannot mix with the one JSON document.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._started_s = time.monotonic()
        self._counted_s: dict[str, float] = {}

    def say(self, text: str) -> None:
        """One line of progress."""
        minutes, seconds = divmod(int(time.monotonic() - self._started_s), 60)
        print(f"[{minutes:3d}:{seconds:02d}] {text}", file=sys.stderr, flush=True)

    def count(self, label: str, done: int, total: int) -> None:
        """How far something is; shown every two seconds, and at the end."""
        now_s = time.monotonic()
        if done < total and now_s - self._counted_s.get(label, 0.0) < COUNT_INTERVAL_S:
            return
        self._counted_s[label] = now_s
        self.say(f"{label}: {done:,} of {total:,}")

    def show(self, content: Any) -> None:
        """A result for a person: text, or anything that rich can render."""
        if self.as_json:
            return
        from rich.console import Console

        width = None if sys.stdout.isatty() else PIPED_WIDTH
        Console(soft_wrap=isinstance(content, str), width=width).print(
            content, markup=False, highlight=False
        )

    def show_raw(self, text: str) -> None:
        """Output of another program as it is; with `as_json` on stderr, as all output is."""
        print(text, end="", flush=True)


@contextmanager
def json_stdout(*, enabled: bool) -> Iterator[TextIO]:
    """The stream for the JSON document, with everything else sent to stderr meanwhile."""
    if not enabled:
        yield sys.stdout
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "w") as stream:
        try:
            yield stream
        finally:
            sys.stdout.flush()
            stream.flush()
            os.dup2(kept, 1)


def write_json_document(value: Any, stream: TextIO) -> None:
    """The one JSON document of a verb."""
    json.dump(value, stream, indent=1, allow_nan=False)
    stream.write("\n")
