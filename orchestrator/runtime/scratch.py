"""Where Ray Train may write what nobody reads back: on a cluster, all nodes must see it."""

from __future__ import annotations

from typing import Any

from orchestrator.spec.object_store import Stored, is_uri


def train_scratch(location: str) -> dict[str, Any]:
    """The arguments of a RunConfig that say so.

    Args:
        location: A folder that every node mounts, or a URI, which our own drivers reach.
    """
    if not is_uri(location):
        return {"storage_path": location}
    import pyarrow.fs

    stored = Stored(location)
    return {
        "storage_path": stored.path,
        "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(stored.driver)),
    }
