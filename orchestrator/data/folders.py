"""Class-per-folder trees: the name of a folder directly below the root is a label."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

from orchestrator.data import locations
from orchestrator.data.locations import Located
from orchestrator.data.tables import SUFFIXES
from orchestrator.errors import DataError
from orchestrator.spec.parts import Modality

# A text may also have no suffix at all.
TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".rst"})

# Also formats that decoding refuses: such a file is meant as an image and must not vanish silently.
# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".svg", ".psd",
    ".raw", ".dng", ".ico",
})
# fmt: on


@dataclass(frozen=True)
class Tree:
    """The images or texts of a tree, and what in it was not used."""

    files: tuple[tuple[str, Located], ...]  # class folder's name, file
    loose: tuple[str, ...]  # files at the top, which belong to no class
    other: dict[str, int]  # files of another kind, by suffix
    empty: tuple[str, ...]  # class folders without a file to use


def read_tree(folder: str, modality: Modality = "image") -> Tree:
    """List a class-per-folder tree.

    Folders nested in a class folder belong to that class. Hidden files and folders are skipped.
    A file is taken for an image or a text by its suffix or by having none.

    Raises:
        DataError: There is no class folder with a file of the wanted kind in it.
    """
    suffixes = IMAGE_SUFFIXES if modality == "image" else TEXT_SUFFIXES
    files: list[tuple[str, Located]] = []
    loose: list[str] = []
    other: Counter[str] = Counter()
    for relative, file in locations.files_under(folder):
        parts = relative.split("/")
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        suffix = PurePosixPath(parts[-1]).suffix.lower()
        if suffix and suffix not in suffixes:
            other[suffix] += 1
        elif len(parts) == 1:
            loose.append(parts[0])
        else:
            files.append((_printable(parts[0]), Located(_printable(file.uri), file.version)))
    if not files:
        raise DataError(_no_files(folder, loose, modality))
    return Tree(tuple(files), tuple(loose), dict(other), _empty_classes(folder, files))


def _empty_classes(folder: str, files: list[tuple[str, Located]]) -> tuple[str, ...]:
    full = {name for name, _ in files}
    names = (_printable(name) for name in locations.under_folder(folder))
    return tuple(name for name in names if name not in full and not name.startswith("."))


def _no_files(folder: str, loose: list[str], modality: Modality) -> str:
    counts: dict[bool, list[str]] = defaultdict(list)
    for relative, _ in locations.files_under(folder):
        counts[relative.lower().endswith(SUFFIXES)].append(relative)
    if loose:
        found = f"{len(loose)} {modality}s lie in the folder itself, in no class folder"
    else:
        found = f"no class folder with {modality}s in it"
    if counts[True]:
        return f"{folder}: {found}. If {counts[True][0]} is the manifest, give its path instead"
    return f"{folder}: {found}. Make one sub-folder a class, or write a CSV manifest"


def _printable(name: str) -> str:
    """`name` as valid text; a file whose name is not UTF-8 is then reported as not readable."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
