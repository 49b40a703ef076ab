"""Writing the trees of the demos: whole files, and never two splits in one folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import DataError

SPLITS = ("train", "test")


def write_split(folder: Path, targets: Mapping[Path, Path], *, suffix: str, what: str) -> None:
    """Copy files into the splits of `folder`; those that are there stay as they are.

    Args:
        folder: With the splits directly below it.
        targets: From each file of the split to what it is a copy of.
        suffix: Of the files.
        what: What they are, in words.

    Raises:
        DataError: The folder holds another split; the two together would leak test examples.
    """
    strays = {file for name in SPLITS for file in (folder / name).rglob(f"*{suffix}")}
    strays -= set(targets)
    if strays:
        raise DataError(
            f"{folder} holds {len(strays):,} {what} that are not of this split, e.g. "
            f"{min(strays)}. Use another folder, or remove train and test"
        )
    for target, source in targets.items():
        copy_once(source, target)


def copy_once(source: Path, target: Path) -> None:
    """Copy a file unless it is there; one that was cut short never is."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        shutil.copyfile(source, part)
        part.replace(target)
