"""What timm does between the last stage and the classifier."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from orchestrator.models.split import Part


def timm_head(model: nn.Module, used: Collection[str]) -> nn.Module:
    """All children that no stage uses, run by timm's own `forward_head` without the classifier."""
    names = {name for name, _ in model.named_children()} - set(used)
    return Part(model, names, _forward_head)


def _forward_head(model: Any, x: Tensor) -> Tensor:
    pooled: Tensor = model.forward_head(x, pre_logits=True)
    return pooled
