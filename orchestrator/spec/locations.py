"""Where things lie: local paths made absolute, URIs and hub ids as they are."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import SpecError, shown


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
