"""From what a user names, a folder or a registry reference, to a verified bundle."""

from __future__ import annotations

from pathlib import Path

from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.cache import default_cache
from orchestrator.bundle.manifest import MANIFEST
from orchestrator.bundle.reference import parse_reference
from orchestrator.bundle.registry import Registry
from orchestrator.errors import RegistryError


def locate(reference: str, *, registry_uri: str | None, cache: Path | None = None) -> Path:
    """The verified folder of the bundle that `reference` names.

    A folder that holds a bundle.json is taken before a name of the registry; `./name` is never
    a name.

    Args:
        reference: A path, or `name`, `name/version` or `name@alias`.
        registry_uri: Where names are looked up; None if there is no registry.
        cache: Where bundles from the registry are kept; in the user's cache folder when None.

    Raises:
        BundleError: If a folder is no bundle.
        IntegrityError: If files are not those that were written or registered.
        RegistryError: If `reference` is neither a folder nor in the registry.
    """
    path = Path(reference).expanduser()
    if (path / MANIFEST).exists() or reference.startswith((".", "/", "~")):
        return open_bundle(path).path
    try:
        parse_reference(reference)
    except RegistryError as err:
        raise RegistryError(f"{reference!r} is no folder of a bundle, and as a {err}") from err
    if registry_uri is None:
        raise RegistryError(
            f"{reference!r} is no folder of a bundle, and no registry was given. Give the folder, "
            "or a registry such as sqlite:///runs/mlflow.db"
        )
    return Registry(registry_uri, cache=cache or default_cache()).resolve(reference)
