"""WiSE-FT: between a zero-shot model and its fine-tuned self lies one better than both.

Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, CVPR 2022: every weight, those of the head
among them, is interpolated. What the fine-tuned one gained on the training data's kind is largely
kept, and what zero-shot knew of other kinds comes back.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ALPHAS = tuple(tenth / 10 for tenth in range(10, -1, -1))  # fine-tuned first: ties stay with it


@torch.no_grad()
def interpolated(
    zero_shot: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """`(1 - alpha) * zero_shot + alpha * tuned`, tensor by tensor; counters are the tuned ones'."""
    assert zero_shot.keys() == tuned.keys()
    return {
        name: torch.lerp(zero_shot[name], tensor, alpha) if tensor.is_floating_point() else tensor
        for name, tensor in tuned.items()
    }
