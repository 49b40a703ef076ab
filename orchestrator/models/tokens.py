"""Batches of tokenized texts and of what an encoder's layers make of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Token numbers `ids` int64 [N, L]; `mask` bool [N, L] says which are no padding.

    `types` int64 [N, L] tells the first from the second of two texts; None where there is one.
    """

    ids: Tensor
    mask: Tensor
    types: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.ids.device

    def tensor_split(self, n_parts: int) -> tuple[Tokens, ...]:
        """As `Tensor.tensor_split`, of all."""
        nothing: tuple[Tensor | None, ...] = (None,) * n_parts
        types = nothing if self.types is None else self.types.tensor_split(n_parts)
        parts = zip(
            self.ids.tensor_split(n_parts), self.mask.tensor_split(n_parts), types, strict=True
        )
        return tuple(Tokens(*part) for part in parts)


@dataclass(frozen=True)
class Hidden:
    """Hidden `states` float [N, L, C] of an encoder; `mask` bool [N, L] as for `Tokens`."""

    states: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.states)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.states.device

    def tensor_split(self, n_parts: int) -> tuple[Hidden, ...]:
        """As `Tensor.tensor_split`, of both."""
        pairs = zip(self.states.tensor_split(n_parts), self.mask.tensor_split(n_parts), strict=True)
        return tuple(Hidden(*pair) for pair in pairs)
