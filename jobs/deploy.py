"""`orchestrator deploy NAME[@alias]…`: serve models over HTTP, or roll what is served.

What is served already keeps whatever the command line does not change.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.alias_following import AliasFollower
from jobs.label_arguments import add_label_arguments
from jobs.registry_arguments import add_registry_argument
from jobs.runtime_arguments import add_runtime_arguments
from jobs.served_models import check_bundles, clip_bundle, named_bundles, named_clips
from jobs.served_settings import settings_of
from jobs.serving_cluster import earlier_endpoint, serving_cluster, set_environment
from jobs.terminal import Terminal
from orchestrator.errors import OrchestratorError, SpecError
from serve.addresses import EVERYWHERE, LOOPBACK, Address, is_loopback

if TYPE_CHECKING:
    from serve.app import AppSettings, EndpointSettings

DETACHED_PATIENCE_S = 300.0
FOLLOWED_EVERY_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "references", metavar="NAME", nargs="*", help="name, name/3 or name@alias in the registry"
    )
    parser.add_argument(
        "--bundle",
        dest="folders",
        metavar="[NAME=]FOLDER",
        action="append",
        default=[],
        help="a bundle's folder, served under its own name or NAME; may be repeated",
    )
    parser.add_argument(
        "--clip",
        dest="clips",
        metavar="[NAME=]MODEL",
        action="append",
        default=[],
        help="a CLIP, clip:ARCHITECTURE/PRETRAINED or its folder: requests bring their own labels; "
        "may be repeated",
    )
    add_label_arguments(parser)
    add_registry_argument(parser, kept="that of the model as it is served, else ")
    parser.add_argument(
        "--only", action="store_true", help="serve nothing else that was served until now"
    )
    rolled = parser.add_mutually_exclusive_group()
    rolled.add_argument(
        "--canary",
        metavar="SHARE",
        type=_share,
        help="such as 10%%: the version that is served stays, the new one answers this share",
    )
    rolled.add_argument(
        "--shadow",
        action="store_true",
        help="the version that is served answers, the new one is compared with it",
    )
    parser.add_argument("--address", metavar="A", help="a Ray cluster to join; else a local one")
    parser.add_argument(
        "--host", default=None, help="to listen at (default: 127.0.0.1, or 0.0.0.0 with --expose)"
    )
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument(
        "--expose", action="store_true", help="listen at every interface; needs --keys"
    )
    parser.add_argument("--keys", metavar="FILE", type=Path, help="lines `NAME KEY`, mode 600")
    parser.add_argument("--min", type=int, help="replicas at least (default: 1)")
    parser.add_argument("--max", type=int, help="replicas at most (default: --min, and 1 at least)")
    parser.add_argument(
        "--own",
        action=argparse.BooleanOptionalAction,
        help="give each model named here a deployment of its own, which may scale to none",
    )
    add_runtime_arguments(parser, kept=True)
    parser.add_argument("--threads", type=int, help="of a forward pass (default: 1)")
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="inputs of several requests that pass through a network together, of the models named "
        "here (default: 32 on a GPU, else 1)",
    )
    parser.add_argument(
        "--at-once", type=int, help="requests a replica computes at once (default: 2)"
    )
    parser.add_argument(
        "--follow",
        metavar="SECONDS",
        type=_seconds,
        nargs="?",
        const=FOLLOWED_EVERY_S,
        help="look so often where the served aliases lead, and roll to what they lead to "
        f"(default: {FOLLOWED_EVERY_S:g}); without it, deploying again does",
    )
    parser.add_argument(
        "--detach", action="store_true", help="leave it running in the background and return"
    )


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    host = checked_host(args)
    clips = named_clips(args)
    named = named_bundles(args)
    starts = args.address is None and earlier_endpoint(args.port) is None
    if args.detach and starts:
        return _detached(args, terminal)
    if args.detach and args.follow is not None:
        raise SpecError("--follow: needs a command that stays. Leave out --detach")
    set_environment(args.address, expose=args.expose)
    named += [(name, clip_bundle(args, clip, terminal)) for name, clip in clips]
    if starts:
        check_bundles(args, named)
    from serve.app import changing, pinned_settings, run_app, stop_serve

    with serving_cluster(args.address, port=args.port) as ours:
        with changing():
            before = None if ours else _served_now(args)
            settings = pinned_settings(settings_of(args, named, before))
            if ours:  # nothing else runs on it: there is nobody to reserve CPUs from
                settings = settings.model_copy(update={"cpus": 0.0})
            terminal.say("loading, and waiting for every replica's first answer")
            listens = run_app(settings, at=Address(host, args.port))
        document = _told(settings, listens, terminal)
        if args.detach or (ours is None and args.follow is None):
            return 0, document
        if os.isatty(0):
            terminal.say("press Ctrl-C to stop")
        follower = AliasFollower(terminal, port=listens.port)
        code = _wait_for_a_signal(follower.look, every_s=args.follow)
        if ours is None:  # what runs on somebody's cluster goes on
            return code, document
        terminal.say("stopping: running requests end first")
        stop_serve()
    return code, {**document, "stopped": True}


def _served_now(args: argparse.Namespace) -> AppSettings | None:
    """What is served on the joined cluster; None where nothing is, or `--only` replaces it.

    Raises:
        UnknownSettingsError: Something is, and nobody knows what.
    """
    from serve.app import UnknownSettingsError, running_settings

    try:
        return running_settings()
    except UnknownSettingsError:
        if args.only:
            return None
        raise


def checked_host(args: argparse.Namespace) -> str:
    """Where to listen; only with keys is that more than this machine.

    Raises:
        SpecError: Others could reach the endpoint without a key.
    """
    if args.expose:
        if args.keys is None:
            raise SpecError("--expose: everyone could ask. Give the keys that may: --keys FILE")
        return args.host or EVERYWHERE
    host = args.host or LOOPBACK
    if not is_loopback(host):
        raise SpecError(
            f"--host: {host} is reached from other machines. Add --expose and --keys FILE, or use "
            f"{LOOPBACK}"
        )
    return str(host)


def _told(settings: AppSettings, listens: Address, terminal: Terminal) -> dict[str, Any]:
    """Say what is served where; the same as JSON."""
    from orchestrator.bundle.mlflow_server import shown_uri

    url = listens.url
    for one in settings.endpoints:
        alias = f" ({one.alias})" if one.alias else ""
        beside = f", beside it {one.candidate.bundle}" if one.candidate else ""
        terminal.show(f"{one.name}: {one.bundle}{alias}{beside}")
    key = ' -H "Authorization: Bearer $KEY"' if settings.keys_file else ""
    first = settings.endpoints[0]
    terminal.show(f"serving at {url}")
    body = " ".join(curl_body(first))
    terminal.show(f"  curl{key} {body} {url}/v1/models/{first.name}:predict")
    return {
        "url": url,
        "endpoints": [
            {**one.model_dump(mode="json"), "registry": one.registry and shown_uri(one.registry)}
            for one in settings.endpoints
        ],
        "pid": os.getpid(),
    }


def curl_body(endpoint: EndpointSettings) -> list[str]:
    """Arguments of curl that ask a model of its kind."""
    from serve.app import accepted_by

    if accepted_by(endpoint) == "question":
        asked = '{"inputs": [{"question": "…", "context": "…"}]}'
        return ["-H 'Content-Type: application/json'", f"-d '{asked}'"]
    return ["-F input=@FILE"]


def _wait_for_a_signal(look: Callable[[], None], *, every_s: float | None) -> int:
    """Wait for Ctrl-C or a request to end, and `look` every so often; the exit code."""
    wait_s = 1.0 if every_s is None else every_s
    stopped = threading.Event()
    codes: list[int] = []

    def stop(number: int, _frame: object) -> None:
        codes.append(130 if number == signal.SIGINT else 0)
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped.wait(wait_s):
            if every_s is not None:
                look()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return codes[0]


def _detached(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """The same command as a process of its own; returns when that serves."""
    from orchestrator.bundle.cache import default_cache

    log = default_cache().parent / "endpoints" / f"{args.port}.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    words = [word for word in sys.argv[1:] if word not in ("--detach", "--json")]
    with log.open("w") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + DETACHED_PATIENCE_S
    while (found := re.search(r"^serving at (\S+)$", log.read_text(), re.MULTILINE)) is None:
        if child.poll() is not None or time.monotonic() > deadline_s:
            child.terminate()
            raise OrchestratorError(f"it does not serve. Its output: {log.read_text()[-2000:]}")
        time.sleep(0.2)
    terminal.show(log.read_text().strip())
    terminal.show(f"stop it with: orchestrator undeploy --port {args.port}")
    return 0, {"url": found[1], "pid": child.pid, "log": str(log)}


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no time from 1 to 86400 seconds")
    return seconds


def _share(text: str) -> float:
    number = text.removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not (text.endswith("%") and 0 < share < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no share. Use such as 10%")
    return share
