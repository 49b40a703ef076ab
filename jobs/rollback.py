"""`orchestrator rollback NAME`: an alias back to the version before, and what is served with it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from jobs.registry_arguments import add_registry_argument
from jobs.serving_cluster import LOOPBACK, earlier_endpoint, serving_cluster, set_environment
from jobs.terminal import Terminal
from orchestrator.bundle.reference import CHAMPION
from orchestrator.errors import RegistryError, listing

if TYPE_CHECKING:
    from orchestrator.bundle.registry import RegisteredVersion, Registry
    from serve.app import AppSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("name", metavar="NAME", help="in the registry")
    parser.add_argument(
        "--alias", default=CHAMPION, help="that is moved back (default: %(default)s)"
    )
    parser.add_argument("--to", type=int, metavar="VERSION", help="the one before when not given")
    add_registry_argument(parser)
    parser.add_argument("--address", metavar="A", help="the Ray cluster that serves it")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    from orchestrator.bundle.cache import default_cache
    from orchestrator.bundle.registry import Registry

    registry = Registry(args.registry, cache=default_cache())
    now = registry.find(f"{args.name}@{args.alias}")
    back = args.to if args.to is not None else version_before(registry, now)
    moved = registry.move_alias(args.name, args.alias, back)
    terminal.show(f"{args.name}@{args.alias}: version {now.version} → {moved.version}")
    rolled = _roll(args, terminal)
    return 0, {
        "name": args.name,
        "alias": args.alias,
        "from": now.version,
        "to": moved.version,
        "rolled": rolled,
    }


def version_before(registry: Registry, now: RegisteredVersion) -> int:
    """The newest version that is older.

    Raises:
        RegistryError: There is none.
    """
    versions = [one.version for one in registry.versions(now.name)]
    older = [version for version in versions if version < now.version]
    if not older:
        raise RegistryError(
            f"{now}: no version is older, of {listing(versions)}. Name one with --to"
        )
    return max(older)


def _roll(args: argparse.Namespace, terminal: Terminal) -> bool:
    """Roll the endpoint to where the alias points, if one is served; whether it is."""
    if args.address is None and earlier_endpoint(args.port) is None:
        terminal.say("no endpoint of this machine serves it; the registry alone has changed")
        return False
    set_environment(args.address)
    from serve.app import pinned_settings, run_app, running_settings

    with serving_cluster(args.address, port=args.port, cpus=1):
        before = running_settings()
        if before is None or args.name not in {one.name for one in before.endpoints}:
            terminal.say(f"{args.name} is not served; the registry alone has changed")
            return False
        run_app(pinned_settings(rolled(before, args)), host=LOOPBACK[0], port=args.port)
    terminal.show(f"{args.name} is served with it")
    return True


def rolled(before: AppSettings, args: argparse.Namespace) -> AppSettings:
    """The settings with the name at its alias, and no candidate beside it."""
    endpoints = [
        one
        if one.name != args.name
        else one.model_copy(
            update={
                "bundle": f"{args.name}@{args.alias}",
                "alias": None,
                "registry": args.registry,
                "candidate": None,
            }
        )
        for one in before.endpoints
    ]
    return before.model_copy(update={"endpoints": tuple(endpoints)})
