"""Downloaded bundles, kept under their digest and verified each time they are used."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from orchestrator.bundle.bundle import open_bundle
from orchestrator.errors import BundleError, IntegrityError


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/transfer-orchestrator/bundles`, below ~/.cache when that is not set."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "transfer-orchestrator" / "bundles"


class BundleCache:
    """A folder of bundles named by their digests, which processes may share."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def get(self, digest: str, download: Callable[[Path], Path]) -> Path:
        """The verified folder of a bundle; a copy that is missing or damaged is downloaded again.

        Args:
            digest: 64 hexadecimal digits.
            download: Puts the bundle's folder into the given empty folder and returns its path.

        Raises:
            IntegrityError: If the download is not the bundle with this digest.
        """
        folder = self._root / digest
        if _holds(folder, digest):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        staging = self._root / f".{digest}.{uuid.uuid4().hex}.partial"
        staging.mkdir(parents=True)
        try:
            downloaded = download(staging)
            _refuse_other(downloaded, digest)
            try:
                downloaded.rename(folder)
            except OSError:
                if not _holds(folder, digest):  # else another process was faster
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return folder


def _holds(folder: Path, digest: str) -> bool:
    try:
        return open_bundle(folder).digest == digest
    except (BundleError, IntegrityError):
        return False


def _refuse_other(folder: Path, digest: str) -> None:
    try:
        found = open_bundle(folder).digest
    except BundleError as err:
        raise IntegrityError(f"what was stored is no bundle any more: {err}") from err
    if found != digest:
        raise IntegrityError(f"another bundle is stored: {found[:12]}…, not {digest[:12]}…")
