"""Mixup and cutmix: convex combinations of images and of their targets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from orchestrator.training.phases import Phase


def mixed(
    images: Tensor, targets: Tensor, phase: Phase, *, seed: int, epoch: int, step: int
) -> tuple[Tensor, Tensor]:
    """Each image mixed with another of its batch, when the phase asks for it.

    Mixup blends whole images (Zhang et al., ICLR 2018); cutmix pastes a rectangle (Yun et al.,
    ICCV 2019) and weighs targets by area. With both, each batch takes one by a fair coin. Every
    choice depends on (seed, epoch, step) alone.

    Args:
        images: float [n, 3, S, S].
        targets: float32 [n, C], distributions.
        phase: Its `mixup` and `cutmix` are the Beta parameters.
        seed: The experiment's.
        epoch: Counted from 1.
        step: The batch's number in its epoch.
    """
    if (phase.mixup == 0 and phase.cutmix == 0) or len(images) < 2:
        return images, targets
    rng = np.random.default_rng([seed, epoch, step])
    use_cutmix = phase.cutmix > 0 and (phase.mixup == 0 or rng.random() < 0.5)
    alpha = phase.cutmix if use_cutmix else phase.mixup
    share = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    if use_cutmix:
        top, bottom, left, right = _box(images.shape[-2], images.shape[-1], 1 - share, rng)
        images = images.clone()
        images[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (images.shape[-1] * images.shape[-2])
    else:
        images = share * images + (1 - share) * images[partner]
    return images, share * targets + (1 - share) * targets[partner]


def _box(
    height: int, width: int, area_fraction: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A rectangle with the image's aspect ratio around a uniform centre, cut at the border."""
    half_height = int(height * area_fraction**0.5) // 2
    half_width = int(width * area_fraction**0.5) // 2
    y, x = int(rng.integers(height)), int(rng.integers(width))
    return (
        max(0, y - half_height),
        min(height, y + half_height),
        max(0, x - half_width),
        min(width, x + half_width),
    )
