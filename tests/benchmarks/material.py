"""What the benchmarks work on: photographs made from noise, and the demos' texts and cells."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from jobs.bbc_news import write_articles
from jobs.elpv import write_elpv, write_weights
from orchestrator.data.examples import Example, Examples, Split
from orchestrator.data.texts import decode_text

CLASSES = ("coarse", "fine")
Kind = Literal["paragraphs", "articles"]


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


def write_news(folder: Path, kind: Kind, *, n: int) -> Path:
    """`n` articles of BBC News, or as many paragraphs of different ones, classes in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        write_articles(Path(scratch), seed=0)
        classes = sorted((Path(scratch) / "train").iterdir())
        files = [sorted(label.glob("*.txt")) for label in classes]
        chosen = [path for row in zip(*files, strict=False) for path in row][:n]
        for number, path in enumerate(chosen):
            text = decode_text(path.read_bytes())
            if kind == "paragraphs":
                parts = [part for part in re.split(r"\n\s*\n", text) if len(part.split()) >= 5]
                text = parts[number % len(parts)]
            target = folder / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
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
