"""The Registry: names → Bundle versions and aliases, with MLflow behind it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.cache import BundleCache
from orchestrator.bundle.mlflow_server import (
    artifact_root,
    checked_uri,
    connect,
    one_writer,
    reached,
    shown_uri,
)
from orchestrator.bundle.reference import (
    CHAMPION,
    Reference,
    check_alias,
    check_name,
    parse_reference,
)
from orchestrator.errors import IntegrityError, RegistryError, listing, nearest

DIGEST_TAG = "bundle_digest"
HOLDERS_TAG = "holders_before."  # and an alias: the versions that had it, the latest last
MOST_HOLDERS = 100
EXPERIMENT = "bundles"  # the MLflow experiment whose runs hold the files
_FOLDER = "bundle"  # the folder of a run's artifacts
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a name: which bundle it is and where its files are.

    `alias` is the one just given by `register`, or that it was found by.
    """

    name: str
    version: int
    alias: str | None
    digest: str
    source: str
    run_id: str
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Registry:
    """Names, versions and aliases of bundles on one MLflow server or SQLite file.

    What is resolved was downloaded, verified against the digest that was registered, and kept in
    the cache under that digest.
    """

    def __init__(self, uri: str, *, cache: Path) -> None:
        """Nothing is reached or created before the first call.

        Args:
            uri: `sqlite:///PATH` or `http(s)://HOST`.
            cache: Folder for downloaded bundles; processes may share it.

        Raises:
            RegistryError: If `uri` is of another kind.
        """
        self.uri = checked_uri(uri)
        self._cache = BundleCache(cache)

    def register(
        self,
        bundle: Bundle,
        *,
        name: str,
        alias: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> RegisteredVersion:
        """Upload `bundle` as the next version of `name`, and move `alias` to it.

        A bundle that `name` already has is not uploaded again: its version gets the alias.

        Raises:
            IntegrityError: If the bundle's files changed since it was opened.
            RegistryError: If a name is not allowed or the registry does not answer.
        """
        check_name(name)
        if alias is not None:
            check_alias(alias)
        if open_bundle(bundle.path).digest != bundle.digest:
            raise IntegrityError(f"{bundle.path} is another bundle than the one that was opened")
        with reached(self.uri):
            _ = self._client  # which takes the writer's lock itself, to make the file
            with one_writer(self.uri):
                version = self._with_digest(name, bundle.digest)
                if version is None:
                    version = self._upload(bundle, name, tags or {})
                if alias is not None:
                    self._give(name, alias, version.version)
        aliases = {*version.aliases, *([alias] if alias is not None else [])}
        return replace(version, alias=alias, aliases=tuple(sorted(aliases)))

    def move_alias(self, name: str, alias: str, version: int) -> RegisteredVersion:
        """Let `alias` of `name` mean another version of it.

        Where that version had it before, what came since is forgotten.

        Raises:
            RegistryError: There is no such name or version, or the alias is not allowed.
        """
        check_alias(alias)
        found = self.find(f"{name}/{version}")
        with reached(self.uri), one_writer(self.uri):
            self._give(name, alias, found.version, back=True)
        return self.find(f"{name}@{alias}")

    def holder_before(self, name: str, alias: str) -> int:
        """The version that had `alias` before the one that has it now.

        Raises:
            RegistryError: There is no such name, or none is recorded that is still there.
        """
        versions = {one.version: one for one in self.versions(name)}
        with reached(self.uri):
            before = _holders(self._client.get_registered_model(name), alias)
        for version in reversed(before):
            if version in versions and alias not in versions[version].aliases:
                return version
        raise RegistryError(
            f"{name}@{alias}: no version is recorded that had the alias before. Name one of "
            f"{listing(versions)} with --to"
        )

    def resolve(self, reference: str) -> Path:
        """The verified folder of what `reference` names.

        Args:
            reference: `name@alias`, `name/3`, or `name` for its champion, else its newest version.

        Raises:
            IntegrityError: If the stored files are not those that were registered.
            RegistryError: If there is no such name, version or alias.
        """
        return self._fetched(self.find(reference))

    def find(self, reference: str) -> RegisteredVersion:
        """The version that `reference` names; see `resolve`."""
        wanted = parse_reference(reference)
        versions = self.versions(wanted.name)
        if wanted.version is not None:
            chosen = [v for v in versions if v.version == wanted.version]
        elif wanted.alias is not None:
            chosen = [replace(v, alias=wanted.alias) for v in versions if wanted.alias in v.aliases]
        else:
            champions = [replace(v, alias=CHAMPION) for v in versions if CHAMPION in v.aliases]
            chosen = champions or versions[-1:]
        if not chosen:
            raise RegistryError(_absent(wanted, versions))
        return chosen[0]

    def versions(self, name: str) -> list[RegisteredVersion]:
        """All versions of `name` that are bundles, oldest first.

        Raises:
            RegistryError: If there is no such name.
        """
        check_name(name)
        versions = self._versions(name)
        if not versions and name not in (names := self.names()):
            known = f"It has {listing(names)}." if names else "It is empty."
            raise RegistryError(
                f"name: {name!r} is not in the registry {shown_uri(self.uri)}. {known}"
                f"{nearest(name, names)}"
            )
        return versions

    def names(self) -> list[str]:
        """All names, sorted."""
        with reached(self.uri):
            models = _paged(self._client.search_registered_models)
        return sorted(model.name for model in models)

    @cached_property
    def _client(self) -> Any:
        return connect(self.uri)

    def _versions(self, name: str) -> list[RegisteredVersion]:
        with reached(self.uri):
            found = _paged(self._client.search_model_versions, filter_string=f"name='{name}'")
            # The search leaves the aliases of its results empty.
            aliases = self._client.get_registered_model(name).aliases if found else {}
        ours = [v for v in found if _DIGEST.fullmatch(v.tags.get(DIGEST_TAG, ""))]
        versions = [_registered(version, aliases) for version in ours]
        return sorted(versions, key=lambda version: version.version)

    def _give(self, name: str, alias: str, version: int, *, back: bool = False) -> None:
        """Move an alias, and keep who had it; a record that was killed half-way misses nobody.

        Args:
            name: Of the model.
            alias: Of it.
            version: That has the alias from now on.
            back: Whether a version that had it before ends the record again.
        """
        client, tag = self._client, f"{HOLDERS_TAG}{alias}"
        model = client.get_registered_model(name)
        before, now = _holders(model, alias), model.aliases.get(alias)
        ended = len(before) - 1 - before[::-1].index(version) if version in before else None
        if now is not None and int(now) != version and not (back and ended is not None):
            before = [*before, int(now)][-MOST_HOLDERS:]
            client.set_registered_model_tag(name, tag, ",".join(map(str, before)))
        client.set_registered_model_alias(name, alias, str(version))
        if back and ended is not None:
            client.set_registered_model_tag(name, tag, ",".join(map(str, before[:ended])))

    def _with_digest(self, name: str, digest: str) -> RegisteredVersion | None:
        """The oldest version of `name` that is this bundle."""
        return next((v for v in self._versions(name) if v.digest == digest), None)

    def _upload(self, bundle: Bundle, name: str, tags: Mapping[str, str]) -> RegisteredVersion:
        client = self._client
        run = client.create_run(self._experiment(), run_name=name)
        run_id = run.info.run_id
        try:
            client.log_artifacts(run_id, str(bundle.path), _FOLDER)
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")
        _create_unless_there(client.create_registered_model, name)
        created = client.create_model_version(
            name,
            f"{run.info.artifact_uri}/{_FOLDER}",
            run_id,
            tags={**tags, **_description(bundle)},
        )
        return self._settled(_registered(created, {}))

    def _settled(self, created: RegisteredVersion) -> RegisteredVersion:
        """The one version to keep when two processes registered one bundle on a server at once.

        Each withdraws its own if there is an older one; the oldest stays.
        """
        first = self._with_digest(created.name, created.digest)
        if first is None or first.version >= created.version:
            return created
        self._client.delete_model_version(created.name, str(created.version))
        self._client.delete_run(created.run_id)
        return first

    def _experiment(self) -> str:
        create = self._client.create_experiment
        _create_unless_there(create, EXPERIMENT, artifact_location=artifact_root(self.uri))
        return str(self._client.get_experiment_by_name(EXPERIMENT).experiment_id)

    def _fetched(self, version: RegisteredVersion) -> Path:
        def download(folder: Path) -> Path:
            with reached(self.uri):
                self._client.download_artifacts(version.run_id, _FOLDER, str(folder))
            return folder / _FOLDER

        try:
            return self._cache.get(version.digest, download)
        except IntegrityError as err:
            raise IntegrityError(f"{version} in {shown_uri(self.uri)}: {err}") from err


def _registered(version: Any, aliases: Mapping[str, str]) -> RegisteredVersion:
    mine = (alias for alias, number in aliases.items() if int(number) == int(version.version))
    return RegisteredVersion(
        name=version.name,
        version=int(version.version),
        alias=None,
        digest=version.tags[DIGEST_TAG],
        source=version.source,
        run_id=version.run_id,
        aliases=tuple(sorted(mine)),
    )


def _holders(model: Any, alias: str) -> list[int]:
    """The versions that had an alias before, the latest last."""
    told = model.tags.get(f"{HOLDERS_TAG}{alias}", "")
    return [int(number) for number in told.split(",") if number.isdecimal()]


def _description(bundle: Bundle) -> dict[str, str]:
    """Tags by which a version is recognised, and told from others in MLflow's own pages."""
    manifest = bundle.manifest
    return {
        DIGEST_TAG: bundle.digest,
        "experiment_digest": manifest.experiment,
        "task": manifest.task.kind,
        "backbone": manifest.backbone.name,
        "strategy": manifest.strategy.strategy,
    }


def _absent(wanted: Reference, versions: list[RegisteredVersion]) -> str:
    numbers = listing(version.version for version in versions) or "none"
    aliases = sorted({alias for version in versions for alias in version.aliases})
    if wanted.alias is None:
        missing = "version" if wanted.version is not None else "bundle"
        return f"{wanted}: no such {missing}. {wanted.name!r} has versions {numbers}"
    return (
        f"{wanted}: {wanted.name!r} has no such alias, only {listing(aliases) or 'none'} "
        f"(versions {numbers}).{nearest(wanted.alias, aliases)}"
    )


def _paged(search: Callable[..., Any], **arguments: str) -> list[Any]:
    """All results of one of MLflow's searches."""
    page = search(**arguments)
    results = list(page)
    while page.token:
        page = search(**arguments, page_token=page.token)
        results.extend(page)
    return results


def _create_unless_there(create: Callable[..., Any], name: str, **arguments: Any) -> None:
    """Create a named thing that another process may have just created."""
    from mlflow.exceptions import MlflowException

    try:
        create(name, **arguments)
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
