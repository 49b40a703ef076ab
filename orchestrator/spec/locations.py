"""Where things lie: local paths made absolute, URIs and hub ids as they are."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import SpecError, shown
from orchestrator.spec.object_store import checked_uri, is_uri


def absolute(location: str, base: Path) -> str:
    """A local path made absolute; URIs and `hub:owner/name` ids stay as they are.

    Args:
        location: What the user wrote.
        base: The folder that relative paths are relative to.

    Raises:
        SpecError: No path can be written so, e.g. `~nobody/data` without such a user.
    """
    if "://" in location or location.startswith("hub:"):
        return location
    try:
        return str((base / Path(location).expanduser()).resolve())
    except (RuntimeError, ValueError, OSError) as err:
        raise SpecError(f"{shown(location)} is no path ({err})") from err


def storage_location(location: str, base: Path) -> str:
    """A storage as every node names it: a folder made absolute, or a URI.

    Args:
        location: What the user wrote.
        base: The folder that relative paths are relative to.

    Raises:
        SpecError: It is neither.
    """
    return checked_uri(location) if is_uri(location) else absolute(location, base)
