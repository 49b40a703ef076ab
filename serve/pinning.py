"""From what settings name to exactly one bundle: every replica answers with the same bytes."""

from __future__ import annotations

import socket
from pathlib import Path

from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.cache import default_cache
from orchestrator.bundle.locating import locate
from orchestrator.bundle.manifest import MANIFEST
from orchestrator.bundle.registry import Registry
from orchestrator.bundle.zero_shot import is_open
from orchestrator.errors import BundleError, IntegrityError, RegistryError
from orchestrator.spec.frozen import Frozen

from .entry import Entry, Identity
from .limits import Limits

SHOWN_DIGITS = 12


class Pin(Frozen):
    """One bundle: where it may be found, and by which digest it is known."""

    name: str
    version: str
    alias: str | None
    digest: str
    folder: str
    registry: str | None = None
    reference: str | None = None

    @property
    def bundle(self) -> str:
        """What settings call exactly this bundle."""
        return self.reference or self.folder

    def __str__(self) -> str:
        alias = f" ({self.alias})" if self.alias else ""
        return f"{self.name} version {self.version}{alias}"


def pinned(bundle: str, *, name: str, registry: str | None) -> Pin:
    """The bundle that a folder or a reference means now.

    Args:
        bundle: A folder, or `name`, `name/3` or `name@alias`.
        name: That it is served under.
        registry: Where references are looked up.

    Raises:
        BundleError: A folder is no bundle.
        IntegrityError: Files are not those that were written or registered.
        RegistryError: A reference leads nowhere.
    """
    path = Path(bundle).expanduser()
    if registry is None or (path / MANIFEST).exists() or bundle.startswith((".", "/", "~")):
        found = open_bundle(locate(bundle, registry_uri=None))
        return Pin(
            name=name,
            version=found.digest[:SHOWN_DIGITS],
            alias=None,
            digest=found.digest,
            folder=str(found.path.absolute()),
        )
    versions = Registry(registry, cache=default_cache())
    version = versions.find(bundle)
    return Pin(
        name=name,
        version=str(version.version),
        alias=version.alias,
        digest=version.digest,
        folder=str(versions.resolve(str(version))),
        registry=versions.uri,
        reference=str(version),
    )


def fetched(pin: Pin) -> Bundle:
    """The pinned bundle on this machine: the folder if it is here, else from the registry.

    Raises:
        IntegrityError: It is another bundle than the pinned one.
        RegistryError: It is nowhere.
    """
    bundle = _here(pin) or _from_registry(pin)
    if bundle.digest != pin.digest:
        raise IntegrityError(
            f"{pin.name}: {bundle.digest[:SHOWN_DIGITS]}… was found, but "
            f"{pin.digest[:SHOWN_DIGITS]}… is to be served"
        )
    return bundle


def _here(pin: Pin) -> Bundle | None:
    try:
        return open_bundle(pin.folder)
    except (BundleError, IntegrityError):
        if pin.registry is None and (Path(pin.folder) / MANIFEST).exists():
            raise
        return None


def _from_registry(pin: Pin) -> Bundle:
    if pin.registry is None or pin.reference is None:
        raise RegistryError(
            f"{pin.name}: {pin.folder} is not on this machine, {socket.gethostname()}. A cluster's "
            "machines fetch from a registry: register the bundle with `orchestrator promote`, and "
            "deploy it by its name; or keep the folder where all of them see it"
        )
    return open_bundle(Registry(pin.registry, cache=default_cache()).resolve(pin.reference))


def entry_of(pin: Pin, bundle: Bundle, limits: Limits) -> Entry:
    """What is told about a pinned bundle."""
    identity = Identity(pin.name, pin.version, pin.alias, pin.digest)
    return Entry(identity, bundle, limits, zero_shot=is_open(bundle))
