"""Pictures to test with, each different from all others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.spec.parts import InputContract

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def smooth_picture(seed: int, width: int = 12, height: int = 10) -> Image.Image:
    """A smooth coloured RGB picture, as a photo is, that no other seed gives."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    return smooth_picture


@pytest.fixture
def contract() -> InputContract:
    return InputContract(size=16, crop_fraction=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., Path]:
    """Writes `{class: seeds}` as a class-per-folder tree of PNG files."""

    def make(classes: dict[str, range | list[int]], name: str = "tree") -> Path:
        root = tmp_path / name
        for label, seeds in classes.items():
            (root / label).mkdir(parents=True, exist_ok=True)
            for seed in seeds:
                smooth_picture(seed).save(root / label / f"{seed}.png")
        return root

    return make
