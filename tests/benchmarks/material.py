"""What the benchmarks work on: photographs and articles made from noise, and the demo's cells."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.elpv import write_elpv, write_weights
from orchestrator.data.examples import Example, Examples, Split
from tests.orchestrator.text_material import FILLERS, WORDS

CLASSES = ("coarse", "fine")


def write_photos(folder: Path, *, n: int, side: int) -> Examples:
    """JPEG pictures of coarse or fine blotches, seven eighths of them for training."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(n):
        label = CLASSES[i % 2]
        cells = 6 if label == "coarse" else 24
        noise = rng.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        picture = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
        path = folder / "images" / f"{i:05d}.jpg"
        picture.save(path, quality=90)
        split: Split = "validation" if i % 8 == 7 else "train"
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append(Example(uri=str(path), content=content, split=split, labels=(label,)))
    return Examples.write(folder / "index", rows, labels=list(CLASSES), multilabel=False)


def write_articles(folder: Path, *, n: int) -> Path:
    """Texts of three kinds, half of them of fewer than 60 words and few of more than 200.

    Every text begins with words of its own, so that none is a copy.
    """
    rng = np.random.default_rng(0)
    kinds = list(WORDS)
    for i in range(n):
        kind = kinds[i % len(kinds)]
        length = int(np.clip(rng.lognormal(np.log(60), 0.7), 5, 250))
        own = rng.random(length) < 0.15
        words = np.where(own, rng.choice(WORDS[kind], length), rng.choice(FILLERS, length))
        number = " ".join(f"{'abcdefghij'[int(digit)]}" for digit in f"{i:04d}")
        path = folder / kind / f"{i:04d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number} {' '.join(words)} {WORDS[kind][i % 9]}")
    return folder


def write_cells(folder: Path, *, n: int) -> tuple[Path, Path]:
    """The demo's data, `n` of its training cells evenly drawn, and its ImageNet weights.

    Returns:
        A class-per-folder tree, and the weights file.
    """
    write_elpv(folder / "elpv", seed=0)
    weights = write_weights(folder / "elpv")
    files = sorted((folder / "elpv" / "train").rglob("*.png"))
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, n).astype(int)]
    for file in chosen:
        target = folder / "cells" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return folder / "cells", weights
