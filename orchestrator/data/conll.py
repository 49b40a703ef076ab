"""CoNLL files: a word and its tag a line, blank lines between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator

from orchestrator.errors import DataError

COLUMNS = range(2, 5)
DOCUMENT = "-DOCSTART-"
_LINE_END = re.compile(r"\r\n|\r|\n")
_SPACES = re.compile(" +")
# Of CoNLL-U and MultiCoNER; a sentence may well begin with the word "#".
_COMMENT = re.compile(r"#\s(\w+ = |id |newdoc|newpar)")


def parse_conll(text: str, location: str) -> Iterator[tuple[list[str], list[str]]]:
    """The words and tags of each sentence.

    The first of two to four columns is the word and the last its tag, separated by spaces, or by
    tabs where a line has any: a word may hold other white space. Lines of the mark -DOCSTART- are
    left out, and so are comments between sentences (`# sent_id = 1`).

    Args:
        text: The file's.
        location: For messages.

    Raises:
        DataError: A line has another number of columns.
    """
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(_LINE_END.split(text), start=1):
        line = line.strip(" ").rstrip("\t ")
        columns = line.split("\t") if "\t" in line else _SPACES.split(line)
        if not line.strip():
            if words:
                yield words, tags
            words, tags = [], []
            continue
        if not words and _COMMENT.match(line):
            continue
        if len(columns) not in COLUMNS:
            raise DataError(
                f"{location}, line {number}: {len(columns)} columns, where a CoNLL file has 2 to "
                "4: the word first, its tag last. Leave out the others"
            )
        if columns[0] != DOCUMENT:
            words.append(columns[0])
            tags.append(columns[-1].strip())
    if words:
        yield words, tags
