"""Texts as token numbers: tokenized once a data set, memory-mapped, cut when a batch asks for them.

A text of more tokens than an encoder takes has windows: stretches of as many as fit, one after the
other, the last one ending with the text. View v of a text is window v, or window v modulo their
number; view 0 is how the text begins.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from orchestrator.data.blobs import map_table, sync_file
from orchestrator.data.examples import Examples
from orchestrator.errors import DataError, IntegrityError
from orchestrator.spec.parts import TextContract

Indices = NDArray[np.int64]

_FORMAT = "tokens-1"
_BLOCK = 512  # texts tokenized at once
_MARKER = "a"


@dataclass(frozen=True)
class TokenRows:
    """A batch of tokenized texts: `ids` int64 [n, L], of which `lengths` int64 [n] count.

    `types` int64 [n, L] tells a pair's first text from its second, by the tokenizer's numbers.
    """

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    types: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def joined(cls, parts: Sequence[TokenRows], pad: int) -> TokenRows:
        """Batches as one, the shorter ones filled with the token `pad`."""
        longest = max(part.ids.shape[1] for part in parts)

        def filled(rows: NDArray[np.int64], value: int) -> NDArray[np.int64]:
            return np.pad(rows, ((0, 0), (0, longest - rows.shape[1])), constant_values=value)

        types = [part.types for part in parts if part.types is not None]
        assert len(types) in (0, len(parts)), "pairs of texts and single ones are other inputs"
        return cls(
            np.concatenate([filled(part.ids, pad) for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([filled(rows, 0) for rows in types]) if types else None,
        )

    def take(self, rows: Indices) -> TokenRows:
        """Some of the texts, as long as all of them."""
        types = None if self.types is None else self.types[rows]
        return TokenRows(self.ids[rows], self.lengths[rows], types)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which tokens are no padding: bool [n, L]."""
        found: NDArray[np.bool_] = np.arange(self.ids.shape[1]) < self.lengths[:, None]
        return found


@dataclass(frozen=True)
class Frame:
    """The special tokens that an encoder expects before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Frame:
        """What a tokenizer puts around a text."""
        bare = tokenizer.encode(_MARKER, add_special_tokens=False).ids
        whole = tokenizer.encode(_MARKER, add_special_tokens=True).ids
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return cls(tuple(whole[:start]), tuple(whole[start + len(bare) :]))

    def most(self, contract: TextContract) -> int:
        """Tokens of a text that one window shows."""
        return contract.size - len(self.before) - len(self.after)

    def rows(
        self, texts: Sequence[NDArray[np.int32]], contract: TextContract, views: Indices
    ) -> TokenRows:
        """Texts as one batch, each in its own view.

        Args:
            texts: Token numbers without special ones.
            contract: Its size is the most tokens a row has; its padding fills the shorter ones.
            views: Of each text, int64 [n].
        """
        most = self.most(contract)
        cut = [window(text, int(view), most) for text, view in zip(texts, views, strict=True)]
        extra = len(self.before) + len(self.after)
        lengths = np.array([len(text) + extra for text in cut], np.int64)
        ids = np.full((len(cut), int(lengths.max(initial=1))), contract.pad, np.int64)
        for row, text, length in zip(ids, cut, lengths, strict=True):
            row[: len(self.before)] = self.before
            row[len(self.before) : len(self.before) + len(text)] = text
            row[length - len(self.after) : length] = self.after
        return TokenRows(ids, lengths)


def window(text: NDArray[np.int32], view: int, most: int) -> NDArray[np.int32]:
    """The `most` tokens of a text that a view shows."""
    n_windows = max(1, -(-len(text) // most))
    start = min((view % n_windows) * most, max(0, len(text) - most))
    return text[start : start + most]


class ListColumn:
    """A column of lists of numbers of a mapped table, by row."""

    def __init__(self, column: Any) -> None:
        self._values = [chunk.values.to_numpy() for chunk in column.chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in column.chunks]
        self._ends = np.cumsum([len(chunk) for chunk in column.chunks], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        chunk = int(np.searchsorted(self._ends, row, side="right"))
        offsets, at = self._offsets[chunk], row - (int(self._ends[chunk - 1]) if chunk else 0)
        numbers: NDArray[np.int32] = self._values[chunk][offsets[at] : offsets[at + 1]]
        return numbers

    def lengths(self) -> Indices:
        """Of each list: int64 [N]."""
        return np.concatenate([np.diff(offsets) for offsets in self._offsets]).astype(np.int64)


class TokenTable:
    """The token numbers of all texts of a data set, mapped from its file."""

    def __init__(self, path: Path) -> None:
        table = map_table(path)
        metadata = table.schema.metadata or {}
        if metadata.get(b"format") != _FORMAT.encode():
            raise IntegrityError(f"{path} was written by another version. Delete it")
        self.frame = Frame(*(tuple(part) for part in json.loads(metadata[b"frame"])))
        self._ids = ListColumn(table.column("ids"))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        """The tokens of one text, special ones not among them."""
        return self._ids[row]

    def lengths(self) -> Indices:
        """Tokens of each text, special ones not counted: int64 [N]."""
        return self._ids.lengths()

    def rows(self, rows: Indices, contract: TextContract, views: Indices) -> TokenRows:
        """Some texts as one batch, each in its own view."""
        return self.frame.rows([self[int(row)] for row in rows], contract, views)


@lru_cache(maxsize=4)
def token_table(path: Path) -> TokenTable:
    """A data set's tokens, mapped once a process.

    Raises:
        DataError: They have not been computed.
    """
    try:
        return TokenTable(path)
    except OSError as err:
        raise DataError(
            f"{path}: the texts' tokens are gone ({err}). Start the sweep again"
        ) from err


def ensure_tokens(
    examples: Examples,
    tokenizer: Tokenizer,
    digest: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> TokenTable:
    """The tokens of a data set's texts, computed unless their file is there.

    Args:
        examples: The data set; the file lies in its folder.
        tokenizer: Without truncation.
        digest: Of the tokenizer.
        progress: Called with the number of texts done and of all.
    """
    path = tokens_path(examples, digest)
    if not path.exists():
        _write(path, examples, tokenizer, progress)
    return TokenTable(path)


def tokens_path(examples: Examples, digest: str) -> Path:
    """Where the tokens of a data set under one tokenizer lie."""
    return examples.folder / f"tokens-{digest[:16]}.arrow"


def _write(
    path: Path,
    examples: Examples,
    tokenizer: Tokenizer,
    progress: Callable[[int, int], None] | None,
) -> None:
    frame = Frame.of(tokenizer)
    metadata = {"format": _FORMAT, "frame": json.dumps([frame.before, frame.after])}
    blocks = ([ids] for ids in _tokenized(examples, tokenizer, progress))
    write_lists(path, ("ids",), metadata, blocks)


def write_lists(
    path: Path,
    names: Sequence[str],
    metadata: dict[str, str],
    blocks: Iterable[Sequence[Any]],
) -> None:
    """Write columns of lists of numbers, whole or not at all.

    Args:
        path: The file.
        names: Of the columns.
        metadata: Of the table.
        blocks: Rows that are written at once: for each column, a list of lists.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    kind = pa.large_list(pa.int32())
    fields = [pa.field(name, kind, nullable=False) for name in names]
    schema = pa.schema(fields, metadata)
    try:
        with pa.ipc.new_file(str(partial), schema) as writer:
            for block in blocks:
                columns = [pa.array(lists, kind) for lists in block]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        sync_file(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _tokenized(
    examples: Examples, tokenizer: Tokenizer, progress: Callable[[int, int], None] | None
) -> Iterator[list[list[int]]]:
    for start in range(0, len(examples), _BLOCK):
        stop = min(start + _BLOCK, len(examples))
        texts = [examples.text(row) for row in range(start, stop)]
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        yield [item.ids for item in encoded]
        if progress is not None:
            progress(stop, len(examples))
