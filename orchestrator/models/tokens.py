"""Batches of tokenized texts and of what an encoder's layers make of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Token numbers `ids` int64 [N, L]; `mask` bool [N, L] says which are no padding."""

    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.ids.device

    def tensor_split(self, n_parts: int) -> tuple[Tokens, ...]:
        """As `Tensor.tensor_split`, of both."""
        pairs = zip(self.ids.tensor_split(n_parts), self.mask.tensor_split(n_parts), strict=True)
        return tuple(Tokens(*pair) for pair in pairs)


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
