"""Pieces: what a network is given of a data set, one input each, and how answers come of them.

A piece is an example, or one of the windows of a text that answers point into. Pieces are numbered
as examples are, in the order of the examples that they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from orchestrator.data.blobs import map_table
from orchestrator.data.examples import Examples, Split
from orchestrator.data.tokens import (
    Indices,
    ListColumn,
    TokenRows,
    token_table,
    tokens_path,
    write_lists,
)
from orchestrator.data.windows import (
    Cutter,
    Encoded,
    Layout,
    encode,
    said_of,
    window_targets,
)
from orchestrator.errors import DataError, IntegrityError
from orchestrator.spec.parts import Contract, TextContract
from orchestrator.tasks.annotations import IGNORED, Annotation, Question, Span
from orchestrator.tasks.metrics import Floats
from orchestrator.tasks.task import Said, Task, Truth

_FORMAT = "spans-1"
_COLUMNS = ("lead", "ids", "starts", "ends")
_BLOCK = 512  # texts tokenized at once
_SAMPLE = 2_000  # windows that the labelled tokens of all are estimated from


class Pieces(Protocol):
    """The inputs that a data set has under one contract."""

    def __len__(self) -> int: ...

    def indices(self, split: Split) -> Indices:
        """The pieces of a split, ascending: int64 [n]."""

    def targets(self, pieces: Indices, task: Task) -> NDArray[Any]:
        """What is true of some pieces, as `loss_targets` takes it."""

    def lengths(self) -> Indices:
        """Of each piece, so that those of like length can share a batch: int64 [N]."""

    def said(self, outputs: Floats, split: Split, task: Task) -> Said:
        """What a network says of a split's examples.

        Args:
            outputs: Logits of the split's pieces in order, flat: [n, positions x outputs].
            split: Whose pieces they are.
            task: What is predicted.
        """


def pieces_of(examples: Examples, contract: Contract) -> Pieces:
    """The pieces of a data set under a contract.

    Raises:
        DataError: Its texts have not been tokenized.
    """
    if isinstance(contract, TextContract) and contract.overlap is not None:
        return _windows(examples.folder, contract)
    return WholeExamples(examples, contract)


def truth_of(examples: Examples, split: Split) -> Truth:
    """What is true of a split's examples, in order."""
    rows = examples.indices(split)
    if examples.annotated:
        return [examples.annotation(int(row)) for row in rows]
    return examples.targets()[rows]


class WholeExamples:
    """Every example is one input."""

    def __init__(self, examples: Examples, contract: Contract) -> None:
        self._examples, self._contract = examples, contract

    def __len__(self) -> int:
        return len(self._examples)

    def indices(self, split: Split) -> Indices:
        return self._examples.indices(split)

    def targets(self, pieces: Indices, task: Task) -> NDArray[Any]:
        targets: NDArray[Any] = self._examples.targets()[pieces]
        return targets

    def lengths(self) -> Indices:
        if not isinstance(self._contract, TextContract):
            return np.ones(len(self), np.int64)
        return token_table(tokens_path(self._examples, self._contract.tokenizer)).lengths()

    def said(self, outputs: Floats, split: Split, task: Task) -> Said:
        return task.probabilities(outputs)


class Windows:
    """The windows of annotated texts."""

    def __init__(self, examples: Examples, contract: TextContract) -> None:
        self._examples, self._contract = examples, contract
        table = map_table(spans_path(examples, contract.tokenizer))
        metadata = table.schema.metadata or {}
        if metadata.get(b"format") != _FORMAT.encode():
            raise IntegrityError(
                f"{spans_path(examples, contract.tokenizer)} was written by another version. "
                "Delete it"
            )
        self._lists = [ListColumn(table.column(name)) for name in _COLUMNS]
        self.cutter = Cutter(Layout(*_tupled(json.loads(metadata[b"layout"]))), contract)
        leads, tokens = (self._lists[i].lengths() for i in (0, 1))
        cut = [
            (row, window)
            for row in range(len(examples))
            for window in self.cutter.windows(int(leads[row]), int(tokens[row]))
        ]
        self._example = np.array([row for row, _ in cut], np.int64)
        self._window: list[Span] = [window for _, window in cut]
        self._splits = np.zeros(len(examples), "U10")
        for split in ("train", "validation", "test"):
            self._splits[examples.indices(split)] = split

    def __len__(self) -> int:
        return len(self._example)

    def indices(self, split: Split) -> Indices:
        return np.flatnonzero(self._splits[self._example] == split).astype(np.int64)

    def lengths(self) -> Indices:
        return np.array([stop - start for start, stop in self._window], np.int64)

    def per_example(self) -> Indices:
        """How many windows each example has: int64 [N]."""
        return np.bincount(self._example, minlength=len(self._splits)).astype(np.int64)

    def cut_leads(self) -> Indices:
        """The examples whose question is longer than an input keeps of one."""
        lengths = self._lists[0].lengths()
        kept = np.array([self.cutter.lead_length(int(length)) for length in lengths], np.int64)
        return np.flatnonzero(lengths > kept).astype(np.int64)

    def rows(self, pieces: Indices) -> TokenRows:
        """Some windows as a batch."""
        return self.cutter.rows([(self._encoded(i), self._window[i]) for i in pieces])

    def targets(self, pieces: Indices, task: Task) -> NDArray[Any]:
        return window_targets(
            [(self._encoded(i), self._truth(i), self._window[i]) for i in pieces],
            self.cutter,
            task,
        )

    def said(self, outputs: Floats, split: Split, task: Task) -> Said:
        pieces = self.indices(split)
        probs = task.probabilities(outputs.reshape(len(pieces), -1, task.n_outputs))
        by_example: dict[int, list[tuple[Span, Floats]]] = {
            int(row): [] for row in self._examples.indices(split)
        }
        for piece, of_piece in zip(pieces, probs, strict=True):
            by_example[int(self._example[piece])].append((self._window[piece], of_piece))
        return [
            said_of(
                self._encoded_row(row), self._examples.annotation(row), windows, self.cutter, task
            )
            for row, windows in by_example.items()
        ]

    def _encoded(self, piece: int) -> Encoded:
        return self._encoded_row(int(self._example[piece]))

    def _encoded_row(self, row: int) -> Encoded:
        lead, ids, starts, ends = (column[row] for column in self._lists)
        return Encoded(lead, ids, np.stack([starts, ends], axis=1).astype(np.int64))

    def _truth(self, piece: int) -> Annotation:
        return self._examples.annotation(int(self._example[piece]))


def labelled_tokens(pieces: Pieces, task: Task) -> NDArray[np.int64]:
    """The tags of a sample's words, of the training pieces evenly drawn: one array a piece."""
    train = pieces.indices("train")
    chosen = train[np.linspace(0, len(train) - 1, min(_SAMPLE, len(train))).astype(np.int64)]
    targets: NDArray[np.int64] = pieces.targets(chosen, task)
    return targets


def words_each(targets: NDArray[np.int64]) -> float:
    """Labelled tokens of a piece, on average."""
    return max(1.0, float((targets != IGNORED).sum() / max(1, len(targets))))


def spans_path(examples: Examples, digest: str) -> Path:
    """Where the tokens of annotated texts under one tokenizer lie."""
    return examples.folder / f"spans-{digest[:16]}.arrow"


def ensure_spans(
    examples: Examples,
    tokenizer: Tokenizer,
    digest: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Tokenize annotated texts with their characters, unless that has been done.

    Args:
        examples: The data set; the file lies in its folder.
        tokenizer: Without truncation.
        digest: Of the tokenizer.
        progress: Called with the number of texts done and of all.
    """
    path = spans_path(examples, digest)
    if path.exists():
        return
    layout = Layout.of(tokenizer, pair=isinstance(examples.annotation(0), Question))
    content = [layout.before, layout.between, layout.after, layout.types]
    metadata = {"format": _FORMAT, "layout": json.dumps(content)}
    write_lists(path, _COLUMNS, metadata, _blocks(examples, tokenizer, progress))


def _blocks(
    examples: Examples, tokenizer: Tokenizer, progress: Callable[[int, int], None] | None
) -> Iterator[Sequence[Any]]:
    for start in range(0, len(examples), _BLOCK):
        stop = min(start + _BLOCK, len(examples))
        texts = [encode(tokenizer, examples.annotation(row)) for row in range(start, stop)]
        yield (
            [text.lead for text in texts],
            [text.ids for text in texts],
            [text.spans[:, 0] for text in texts],
            [text.spans[:, 1] for text in texts],
        )
        if progress is not None:
            progress(stop, len(examples))


@lru_cache(maxsize=4)
def _windows(folder: Path, contract: TextContract) -> Windows:
    try:
        return Windows(Examples.open(folder), contract)
    except OSError as err:
        raise DataError(
            f"{folder}: the texts' tokens are gone ({err}). Start the sweep again"
        ) from err


def _tupled(layout: list[list[int]]) -> tuple[Any, ...]:
    return tuple(tuple(part) for part in layout)
