"""`orchestrator rollback NAME`: an alias back to the version that had it before, served or not."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobs.registry_arguments import add_registry_argument, default_registry
from jobs.serving_cluster import earlier_endpoint, serving_cluster, set_environment
from jobs.terminal import Terminal
from orchestrator.bundle.reference import CHAMPION
from serve.addresses import LOOPBACK, Address

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
    add_registry_argument(parser, kept="that of the model as it is served, else ")
    parser.add_argument("--address", metavar="A", help="the Ray cluster that serves it")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    from orchestrator.bundle.cache import default_cache
    from orchestrator.bundle.registry import Registry

    with _served_now(args, terminal) as before:
        registry = Registry(_registry_of(args, before), cache=default_cache())
        now = registry.find(f"{args.name}@{args.alias}")
        wanted = args.to if args.to is not None else registry.holder_before(args.name, args.alias)
        back = registry.find(f"{args.name}/{wanted}")
        if before is not None:  # where that fails, the alias stays with what is served
            _roll(rolled(before, args, back, registry=registry.uri), args.port)
            terminal.show(f"{args.name} is served with it")
        moved = registry.move_alias(args.name, args.alias, back.version)
    terminal.show(f"{args.name}@{args.alias}: version {now.version} → {moved.version}")
    return 0, {
        "name": args.name,
        "alias": args.alias,
        "from": now.version,
        "to": moved.version,
        "rolled": before is not None,
    }


@contextmanager
def _served_now(args: argparse.Namespace, terminal: Terminal) -> Iterator[AppSettings | None]:
    """What is served, on a cluster joined for the block; None where the name is not."""
    if args.address is None and earlier_endpoint(args.port) is None:
        terminal.say("no endpoint of this machine serves it; the registry alone changes")
        yield None
        return
    set_environment(args.address)
    from serve.app import changing, running_settings

    with serving_cluster(args.address, port=args.port), changing():
        before = running_settings()
        if before is None or args.name not in {one.name for one in before.endpoints}:
            terminal.say(f"{args.name} is not served; the registry alone changes")
            before = None
        yield before


def _registry_of(args: argparse.Namespace, before: AppSettings | None) -> str:
    """Where the name is looked up: as it is said, or where what is served came from."""
    endpoints = () if before is None else before.endpoints
    served = (one.registry for one in endpoints if one.name == args.name)
    return args.registry or next(served, None) or default_registry()


def _roll(settings: AppSettings, port: int) -> None:
    from serve.app import pinned_settings, run_app

    run_app(pinned_settings(settings), at=Address(LOOPBACK, port))


def rolled(
    before: AppSettings, args: argparse.Namespace, back: RegisteredVersion, *, registry: str
) -> AppSettings:
    """The settings with the name at a version, as its alias soon is, and no candidate beside it."""
    endpoints = [
        one
        if one.name != args.name
        else one.model_copy(
            update={
                "bundle": str(back),
                "alias": args.alias,
                "registry": registry,
                "candidate": None,
            }
        )
        for one in before.endpoints
    ]
    return before.model_copy(update={"endpoints": tuple(endpoints)})
