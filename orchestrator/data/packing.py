"""Texts packed into rows of full length: a separator after each, nothing cut away, no padding.

Only the last row can be shorter than the others; padding fills it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.blobs import sync_file
from orchestrator.data.examples import Split
from orchestrator.data.tokens import TokenTable

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class PackedRows:
    """Token numbers int32 [n, L], mapped from their file; special tokens begin and end each row."""

    ids: NDArray[np.int32]
    pad: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_tokens(self) -> int:
        """Of all rows, padding not counted."""
        return int(self.ids.size - (self.ids[-1:] == self.pad).sum())

    def take(self, rows: Indices) -> NDArray[np.int64]:
        """Some rows, int64 [n, L]."""
        return self.ids[rows].astype(np.int64)


def pack(
    table: TokenTable, texts: Indices, *, size: int, pad: int, folder: Path, name: str
) -> PackedRows:
    """Some texts as rows of `size` tokens, computed unless their file is there.

    Args:
        table: Tokens of all texts.
        texts: Which, in their order.
        size: Tokens of a row, special ones included.
        pad: Fills the last row.
        folder: Where the file lies.
        name: Of the file: it must tell the texts, the tokenizer and the size.
    """
    path = folder / f"{name}.npy"
    if not path.exists():
        _write(path, table, texts, size, pad)
    return PackedRows(np.load(path, mmap_mode="r"), pad)


def packed_name(split: Split, tokenizer: str, size: int) -> str:
    """What the packed rows of one split of a data set are called."""
    return f"packed-{split}-{tokenizer[:16]}-{size}"


def _write(path: Path, table: TokenTable, texts: Indices, size: int, pad: int) -> None:
    frame = table.frame
    before, after = np.array(frame.before, np.int32), np.array(frame.after, np.int32)
    separator = after[-1:]
    body = size - len(before) - len(after)
    n_tokens = int((table.lengths()[texts] + len(separator)).sum())
    n_rows = max(1, -(-n_tokens // body))
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        rows = np.lib.format.open_memmap(partial, mode="w+", dtype=np.int32, shape=(n_rows, size))
        at = 0  # of the stream of all tokens
        for text in texts:
            tokens = np.concatenate([table[int(text)], separator])
            while len(tokens):
                row, column = divmod(at, body)
                part = tokens[: body - column]
                start = len(before) + column
                rows[row, start : start + len(part)] = part
                at += len(part)
                tokens = tokens[len(part) :]
        rows[:, : len(before)] = before
        rows[:-1, size - len(after) :] = after
        end = len(before) + at - body * (n_rows - 1)
        rows[-1, end : end + len(after)] = after
        rows[-1, end + len(after) :] = pad
        rows.flush()
        del rows
        sync_file(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
