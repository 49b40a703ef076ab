"""A Bundle on disk: opened only when every byte in it is the byte that was written. No torch."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from orchestrator.bundle.drift import DriftBaseline
from orchestrator.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    BundleManifest,
    FileEntry,
    FileName,
    Scores,
    parse_manifest,
)
from orchestrator.errors import BundleError, IntegrityError
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import Contract, TaskSpec
from orchestrator.spec.record import Record


@dataclass(frozen=True)
class Bundle:
    """A verified folder with all that serving needs and how it came to be.

    The files are read again when they are needed and checked again as they are: what is used is
    what was verified, even if the folder changed in between.
    """

    path: Path
    manifest: BundleManifest

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest, and through it over every file."""
        return self.manifest.digest

    @property
    def task(self) -> TaskSpec:
        """What is predicted."""
        return self.manifest.task

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the outputs."""
        return self.manifest.task.labels

    @property
    def input(self) -> Contract:
        """How an image is prepared."""
        return self.manifest.input

    @property
    def scores(self) -> Scores:
        """What the model scored on validation and, where there was one, on test."""
        return self.manifest.scores

    def read(self, name: FileName) -> bytes:
        """The bytes of one file, verified as they are read.

        Raises:
            BundleError: If the bundle has no such file.
            IntegrityError: If the file changed since the bundle was opened.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} has no {name}, only {', '.join(self.manifest.files)}")
        entry = self.manifest.files[name]
        with _regular_file(self.path, name) as file:
            content = file.read(entry.bytes + 1)
        _check_size(name, entry, len(content))
        _check_digest(name, entry, hashlib.sha256(content).hexdigest())
        return content

    def drift_baseline(self) -> DriftBaseline | None:
        """What its training examples' features were like, where that was recorded."""
        if "drift.json" not in self.manifest.files:
            return None
        return DriftBaseline.model_validate_json(self.read("drift.json"))

    def experiment(self) -> Experiment:
        """What was run."""
        return Experiment.model_validate_json(self.read("experiment.json"))

    def record(self) -> Record:
        """What came out."""
        return Record.model_validate_json(self.read("record.json"))


def open_bundle(path: Path | str) -> Bundle:
    """The bundle in a folder, after every file in it was verified and before any is interpreted.

    Args:
        path: The folder. It may be reached through a link; nothing inside it may be one.

    Raises:
        BundleError: If it is no bundle, or one of a newer format.
        IntegrityError: If files changed, are missing, or are not named in bundle.json; all of
            them are listed.
    """
    folder = Path(path)
    if not os.path.lexists(folder / MANIFEST):
        what = "has no bundle.json" if folder.is_dir() else "is not a folder"
        raise BundleError(f"{folder} {what}, so it is no bundle. Give the folder of a bundle")
    try:
        manifest = parse_manifest(_manifest_bytes(folder))
        _verify(folder, manifest.files)
    except (BundleError, IntegrityError) as err:
        raise type(err)(f"{folder}: {err}") from err
    return Bundle(folder.resolve(), manifest)


def _manifest_bytes(folder: Path) -> bytes:
    with _regular_file(folder, MANIFEST) as file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST}: more than {MAX_MANIFEST_BYTES:,} bytes. None is so large")
    return raw


def _verify(folder: Path, files: Mapping[FileName, FileEntry]) -> None:
    found = {entry.name for entry in os.scandir(folder)} - {MANIFEST}
    faults = [f"{name!r}: not named in {MANIFEST}" for name in sorted(found - set(files))]
    for name, entry in files.items():
        try:
            _verify_file(folder, name, entry)
        except IntegrityError as err:
            faults.append(str(err))
    if faults:
        raise IntegrityError("; ".join(faults))


def _verify_file(folder: Path, name: FileName, entry: FileEntry) -> None:
    with _regular_file(folder, name) as file:
        _check_size(name, entry, os.fstat(file.fileno()).st_size)
        _check_digest(name, entry, hashlib.file_digest(file, "sha256").hexdigest())


def _check_size(name: FileName, entry: FileEntry, size: int) -> None:
    if size != entry.bytes:
        raise IntegrityError(f"{name}: has not the {entry.bytes:,} bytes that were written")


def _check_digest(name: FileName, entry: FileEntry, sha256: str) -> None:
    if sha256 != entry.sha256:
        raise IntegrityError(
            f"{name}: SHA-256 {sha256[:12]}…, but {entry.sha256[:12]}… was written"
        )


@contextmanager
def _regular_file(folder: Path, name: str) -> Iterator[BufferedReader]:
    """An open file that is no link, folder, pipe or device; opening a pipe must not block."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as err:
        linked = (folder / name).is_symlink()
        reason = "is a link, not a file" if linked else f"cannot be read ({err.strerror})"
        raise IntegrityError(f"{name}: {reason}") from err
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IntegrityError(f"{name}: is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        yield file
