"""`orchestrator undeploy [NAME…]`: take models out of service, or end all of it."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.serving_cluster import earlier_endpoint, serving_cluster, set_environment
from jobs.terminal import Terminal
from orchestrator.errors import OrchestratorError, SpecError, listing, nearest
from serve.addresses import LOOPBACK, Address

if TYPE_CHECKING:
    from serve.app import AppSettings

PATIENCE_S = 120.0  # replicas drain, then their cluster ends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("names", metavar="NAME", nargs="*", help="served ones; all when not given")
    parser.add_argument("--address", metavar="A", help="the Ray cluster that serves them")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    earlier = None if args.address else earlier_endpoint(args.port)
    if args.address is None and earlier is None:
        raise SpecError(
            f"nothing that was deployed on this machine serves at port {args.port}. Give its "
            "--port, or the cluster's --address"
        )
    set_environment(args.address)
    from serve.app import changing, run_app, stop_app

    with serving_cluster(args.address, port=args.port), changing():
        before = _served_now(args)
        left = () if before is None else without(before, args.names)
        kept = [one.name for one in left]
        served = () if before is None else before.endpoints
        stopped = [one.name for one in served if one.name not in kept]
        if before is not None and left:
            settings = before.model_copy(update={"endpoints": left})
            run_app(settings, at=Address(LOOPBACK, args.port))
        elif earlier is None:
            stop_app()
    if not left and earlier is not None:
        _end(earlier.pid)
    for name in stopped or ["all of it"]:
        terminal.show(f"{name} is served no more")
    return 0, {"stopped": stopped, "served": kept}


def _served_now(args: argparse.Namespace) -> AppSettings | None:
    """What is served; None where all of it is to end and nobody knows what it is.

    Raises:
        SpecError: Nothing is served.
        UnknownSettingsError: A name is to be taken out of something unknown.
    """
    from serve.app import UnknownSettingsError, running_settings

    try:
        before = running_settings()
    except UnknownSettingsError:
        if args.names:
            raise
        return None
    if before is None:
        raise SpecError(f"no model is served at {args.address or f'port {args.port}'}")
    return before


def without(before: AppSettings, names: Sequence[str]) -> tuple[Any, ...]:
    """The endpoints that stay; none when no name is given.

    Raises:
        SpecError: A name is not served.
    """
    served = [one.name for one in before.endpoints]
    for name in names:
        if name not in served:
            raise SpecError(f"{name} is not served, only {listing(served)}.{nearest(name, served)}")
    return tuple(one for one in before.endpoints if names and one.name not in names)


def _end(pid: int) -> None:
    """Ask the command that serves to end, and wait until it has.

    Raises:
        OrchestratorError: It does not.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    try:
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline_s:
            os.kill(pid, 0)
            time.sleep(0.2)
    except ProcessLookupError:
        return
    raise OrchestratorError(f"process {pid} has not ended in {PATIENCE_S:g} s. kill -9 {pid} does")
