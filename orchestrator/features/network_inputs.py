"""From inputs as the data layer prepares them to what a network takes."""

from __future__ import annotations

import torch

from orchestrator.data.inputs import Prepared
from orchestrator.data.tokens import TokenRows
from orchestrator.data.transforms import normalized
from orchestrator.models.backbone import Inputs
from orchestrator.models.tokens import Tokens
from orchestrator.spec.parts import Contract, InputContract, TextContract

_FEW_TOKENS = 64  # that every vocabulary has


def network_inputs(prepared: Prepared, contract: Contract, device: torch.device) -> Inputs:
    """Pixels as a normalised batch, channels last in memory; token numbers with their mask.

    Args:
        prepared: uint8 [n, 3, S, S], or tokens.
        contract: How they were prepared.
        device: Where they are wanted.
    """
    if isinstance(prepared, TokenRows):
        ids = torch.from_numpy(prepared.ids).to(device, non_blocking=True)
        types = None
        if prepared.types is not None:
            types = torch.from_numpy(prepared.types).to(device, non_blocking=True)
        mask = torch.from_numpy(prepared.mask).to(device, non_blocking=True)
        return Tokens(ids, mask, types)
    assert isinstance(contract, InputContract)
    images = torch.from_numpy(normalized(prepared, contract))
    if device.type == "cuda":
        images = images.pin_memory()
    return images.to(device, memory_format=torch.channels_last, non_blocking=True)


def random_inputs(contract: Contract, n: int, device: torch.device) -> Inputs:
    """A batch of `n` inputs as large as they come, to measure with."""
    size = contract.size
    if isinstance(contract, TextContract):
        ids = torch.randint(_FEW_TOKENS, (n, size), device=device)
        return Tokens(ids, torch.ones(n, size, dtype=torch.bool, device=device))
    images = torch.rand(n, 3, size, size, device=device)
    return images.contiguous(memory_format=torch.channels_last)
