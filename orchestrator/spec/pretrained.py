"""Adapted backbones by the places that experiments name; at a URI they are fetched once a node."""

from __future__ import annotations

from pathlib import Path

from orchestrator.spec import mirror
from orchestrator.spec.object_store import is_uri

PROVENANCE = "pretraining.json"


def pretrained_folder(location: str) -> Path:
    """The folder at a location, whole, on this node.

    Raises:
        IntegrityError: The URI has other bytes than its provenance says.
    """
    return mirror.fetch_folder(
        mirror.local_path(location), last=PROVENANCE, digests=lambda content: content["files"]
    )


def pretrained_file(location: str) -> Path:
    """A file of such a folder, or any file of this machine."""
    folder, _, name = location.rpartition("/")
    return pretrained_folder(folder) / name if is_uri(location) else Path(location)
