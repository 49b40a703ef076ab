"""`orchestrator rollback NAME`: an alias back to the version that had it before, served or not."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from jobs.registry_arguments import add_registry_argument
from jobs.serving_cluster import LOOPBACK, earlier_endpoint, serving_cluster, set_environment
from jobs.terminal import Terminal
from orchestrator.bundle.reference import CHAMPION

if TYPE_CHECKING:
    from orchestrator.bundle.registry import RegisteredVersion
    from serve.app import AppSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("name", metavar="NAME", help="in the registry")
    parser.add_argument(
        "--alias", default=CHAMPION, help="that is moved back (default: %(default)s)"
    )
    parser.add_argument(
        "--to", type=int, metavar="VERSION", help="the one that had it before when not given"
    )
    add_registry_argument(parser)
    parser.add_argument("--address", metavar="A", help="the Ray cluster that serves it")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    from orchestrator.bundle.cache import default_cache
    from orchestrator.bundle.registry import Registry

    registry = Registry(args.registry, cache=default_cache())
    now = registry.find(f"{args.name}@{args.alias}")
    wanted = args.to if args.to is not None else registry.holder_before(args.name, args.alias)
    back = registry.find(f"{args.name}/{wanted}")
    rolled = _roll(args, back, terminal)  # where that fails, the alias stays with what is served
    moved = registry.move_alias(args.name, args.alias, back.version)
    terminal.show(f"{args.name}@{args.alias}: version {now.version} → {moved.version}")
    return 0, {
        "name": args.name,
        "alias": args.alias,
        "from": now.version,
        "to": moved.version,
        "rolled": rolled,
    }


def _roll(args: argparse.Namespace, back: RegisteredVersion, terminal: Terminal) -> bool:
    """Roll the endpoint to a version, if the name is served; whether it is."""
    if args.address is None and earlier_endpoint(args.port) is None:
        terminal.say("no endpoint of this machine serves it; the registry alone changes")
        return False
    set_environment(args.address)
    from serve.app import pinned_settings, run_app, running_settings

    with serving_cluster(args.address, port=args.port, cpus=1):
        before = running_settings()
        if before is None or args.name not in {one.name for one in before.endpoints}:
            terminal.say(f"{args.name} is not served; the registry alone changes")
            return False
        run_app(pinned_settings(rolled(before, args, back)), host=LOOPBACK[0], port=args.port)
    terminal.show(f"{args.name} is served with it")
    return True


def rolled(before: AppSettings, args: argparse.Namespace, back: RegisteredVersion) -> AppSettings:
    """The settings with the name at a version, as its alias soon is, and no candidate beside it."""
    endpoints = [
        one
        if one.name != args.name
        else one.model_copy(
            update={
                "bundle": str(back),
                "alias": args.alias,
                "registry": args.registry,
                "candidate": None,
            }
        )
        for one in before.endpoints
    ]
    return before.model_copy(update={"endpoints": tuple(endpoints)})
