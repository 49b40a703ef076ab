"""Masked-language modelling: which tokens of a row are to be told, and what stands in their place.

Of the chosen tokens 80 % become the mask token, 10 % a random one, 10 % stay (Devlin et al., NAACL
2019, section 3.1). The choice is a function of (seed, epoch, row) alone, so it does not depend on
batches, workers or interruptions, and it is another in every epoch (Liu et al., RoBERTa, 2019).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from orchestrator.data.packing import Indices, PackedRows
from orchestrator.data.tokens import Frame

MASKED_PROB, RANDOM_PROB = 0.8, 0.1


@dataclass(frozen=True)
class MaskedRows:
    """A batch with some of its tokens hidden.

    Attributes:
        ids: What the network sees, int64 [n, L].
        present: Which tokens are no padding, bool [n, L].
        chosen: Which are to be told, bool [n, L].
        targets: What stood there, in the order of the rows, int64 [m].
    """

    ids: NDArray[np.int64]
    present: NDArray[np.bool_]
    chosen: NDArray[np.bool_]
    targets: NDArray[np.int64]


class Masking:
    """Hides tokens of packed rows.

    Args:
        tokenizer: Whose tokens they are.
        mask: The mask token.
        fraction: Share of the tokens to choose; special ones are never chosen.
        seed: Of the choice.
    """

    def __init__(self, tokenizer: Tokenizer, *, mask: int, fraction: float, seed: int) -> None:
        frame = Frame.of(tokenizer)
        special = {mask, *frame.before, *frame.after, *special_tokens(tokenizer)}
        n_tokens = tokenizer.get_vocab_size(with_added_tokens=True)
        self._ordinary = np.setdiff1d(np.arange(n_tokens), list(special))
        self._special = np.array(sorted(special), np.int64)
        self._mask, self._fraction, self._seed = mask, fraction, seed

    def n_chosen(self, rows: PackedRows) -> Indices:
        """How many tokens of each row are chosen, in every epoch: int64 [n]."""
        return np.concatenate(
            [
                self._count((~self._is_special(part, rows.pad)).sum(axis=1))
                for part in np.array_split(rows.ids, max(1, len(rows) // 1024))
            ]
        )

    def hide(self, rows: PackedRows, which: Indices, *, epoch: int) -> MaskedRows:
        """Some rows as an epoch shows them; at least one token of each row is chosen."""
        ids = rows.take(which)
        free = ~self._is_special(ids, rows.pad)
        chosen = np.zeros(ids.shape, np.bool_)
        shown = ids.copy()
        for at, row in enumerate(which):
            rng = np.random.default_rng([self._seed, epoch, int(row)])
            places = np.flatnonzero(free[at])
            count = int(self._count(np.array([len(places)]))[0])
            picked = rng.choice(places, count, replace=False)
            kind = rng.random(count)
            masked, replaced = kind < MASKED_PROB, kind >= 1 - RANDOM_PROB
            shown[at, picked[masked]] = self._mask
            shown[at, picked[replaced]] = rng.choice(self._ordinary, int(replaced.sum()))
            chosen[at, picked] = True
        return MaskedRows(shown, ids != rows.pad, chosen, ids[chosen])

    def _count(self, n_free: Indices) -> Indices:
        wanted = np.maximum(1, np.round(self._fraction * n_free)).astype(np.int64)
        return np.minimum(wanted, n_free)

    def _is_special(
        self, ids: NDArray[np.int64] | NDArray[np.int32], pad: int
    ) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.isin(ids, self._special) | (ids == pad)
        return found


def special_tokens(tokenizer: Tokenizer) -> Iterable[int]:
    """The tokens that stand for no text."""
    added = tokenizer.get_added_tokens_decoder()
    return [number for number, token in added.items() if token.special]
