"""Data sets of the `datasets` library: saved with `save_to_disk`, or on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.data import locations
from orchestrator.data.tables import Cells, arrow_records
from orchestrator.errors import DataError, listing
from orchestrator.spec.frozen import digest_of

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_SAVED_MARKS = ("dataset_dict.json", "state.json")
_ROWS = 32  # rows with their image bytes that are in memory at once


def is_saved_dataset(folder: str) -> bool:
    """Whether `folder` was written by `save_to_disk`."""
    return any(locations.exists(locations.join(folder, name)) for name in _SAVED_MARKS)


def is_hub_id(location: str) -> bool:
    """Whether `location` names a data set on the hub: `hub:…`, or `owner/name`."""
    return location.startswith("hub:") or _HUB_ID.match(location) is not None


class DatasetTable:
    """One split of a data set; class numbers are turned into their names."""

    def __init__(self, dataset: Any, location: str) -> None:
        self._dataset = dataset
        self._location = location

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(self._dataset.column_names)

    @property
    def base(self) -> str:
        """Where relative paths in a path column start."""
        return self._location if Path(self._location).is_absolute() else str(Path.cwd())

    @property
    def version(self) -> str:
        """The data files behind the set, with their sizes and times."""
        files = sorted(entry["filename"] for entry in self._dataset.cache_files)
        return digest_of([[file, locations.version_of(file)] for file in files])

    @property
    def preferred(self) -> tuple[str | None, str | None]:
        """The only Image feature and the only ClassLabel feature (or list of them), if any."""
        import datasets

        features = self._dataset.features
        images = [name for name in features if isinstance(features[name], datasets.Image)]
        classes = [name for name in features if _class_label(features[name]) is not None]
        return _only(images), _only(classes)

    def rows(self, source: str, label: str) -> Iterator[Cells]:
        """The cells of two features."""
        for cells in self.records((source, label)):
            yield Cells(*cells)

    def records(self, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The cells of some features, a few rows in memory at a time."""
        class_labels = [_class_label(self._dataset.features[name]) for name in columns]
        wanted = list(dict.fromkeys(columns))
        arrow = self._dataset.select_columns(wanted).with_format("arrow")
        for table in arrow.iter(batch_size=_ROWS):
            for cells in arrow_records(table.column(name) for name in columns):
                yield tuple(map(_named, cells, class_labels))


def open_saved_dataset(folder: str, *, split: str) -> DatasetTable:
    """The set saved in `folder`; of several splits, `split`.

    Raises:
        DataError: The folder is damaged, or has no such split.
    """
    import datasets

    try:
        return DatasetTable(_split_of(datasets.load_from_disk(folder), folder, split), folder)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"{folder}: not readable as a saved data set: {err}") from err


def open_hub_dataset(location: str, *, split: str, cache: Path) -> DatasetTable:
    """The split `split` of a data set on the hub, downloaded once into `cache`.

    Args:
        location: `hub:OWNER/NAME`, or `hub:OWNER/NAME/CONFIGURATION` of a set that has several.
        split: Which split.
        cache: Where it is downloaded to.

    Raises:
        DataError: The hub cannot be reached, or has no such set, configuration or split.
    """
    import datasets

    parts = location.removeprefix("hub:").split("/", 2)  # sets of long ago have no owner
    name, configuration = "/".join(parts[:2]), parts[2] if len(parts) > 2 else None
    try:
        loaded = datasets.load_dataset(name, configuration, cache_dir=str(cache / "hub"))
    except (OSError, ValueError, RuntimeError) as err:
        reason = " ".join(str(err).split()).rstrip(".")[:400] or type(err).__name__
        raise DataError(
            f"{location}: cannot be loaded from the hub: {reason}. Check the id and the network "
            "(a configuration is written hub:OWNER/NAME/CONFIGURATION), or give a local path, "
            "written from the folder of the spec as ./NAME"
        ) from err
    return DatasetTable(_split_of(loaded, location, split), location)


def _split_of(loaded: Any, location: str, split: str) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if split not in loaded:
        raise DataError(
            f"{location}: no split {split!r}; it has {listing(loaded)}. "
            "Rename the split, or save the splits as data sets of their own"
        )
    return loaded[split]


def _class_label(feature: Any) -> Any | None:
    """The ClassLabel that `feature` is, or is a list of."""
    import datasets

    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, datasets.ClassLabel) else None


def _named(cell: Any, class_label: Any | None) -> Any:
    """Class numbers as names; -1 is how `datasets` writes that there is no label."""
    if class_label is None or cell is None:
        return cell
    if isinstance(cell, list):
        return [_named(element, class_label) for element in cell]
    return None if cell < 0 else class_label.int2str(cell)


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None
