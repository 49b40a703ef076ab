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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.label_arguments import add_label_arguments, given_labels
from jobs.registry_arguments import add_registry_argument, default_registry
from jobs.runtime_arguments import add_runtime_arguments
from jobs.serving_cluster import earlier_endpoint, serving_cluster, set_environment
from jobs.terminal import Terminal
from orchestrator.bundle.reference import check_name, parse_reference
from orchestrator.errors import OrchestratorError, RegistryError, SpecError
from orchestrator.spec.clip_models import parse_clip
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.prompts import with_templates
from serve.addresses import EVERYWHERE, LOOPBACK, Address, is_loopback

if TYPE_CHECKING:
    from serve.app import AppSettings, EndpointSettings

DETACHED_PATIENCE_S = 300.0


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
    parser.add_argument("--max", type=int, help="replicas at most (default: --min)")
    parser.add_argument(
        "--own",
        action=argparse.BooleanOptionalAction,
        help="give each model named here a deployment of its own, which may scale to none",
    )
    add_runtime_arguments(parser, kept=True)
    parser.add_argument("--threads", type=int, help="of a forward pass (default: 1)")
    parser.add_argument(
        "--at-once", type=int, help="requests a replica computes at once (default: 2)"
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
    set_environment(args.address, expose=args.expose)
    named += [(name, clip_bundle(args, clip, terminal)) for name, clip in clips]
    if starts:
        check_bundles(args, named)
    from serve.app import pinned_settings, run_app, stop_serve

    with serving_cluster(args.address, port=args.port) as ours:
        before = None if ours else _served_now(args)
        settings = pinned_settings(settings_of(args, named, before))
        if ours:  # nothing else runs on it: there is nobody to reserve CPUs from
            settings = settings.model_copy(update={"cpus": 0.0})
        terminal.say("loading, and waiting for every replica's first answer")
        listens = run_app(settings, at=Address(host, args.port))
        document = _told(settings, listens, terminal)
        if ours is None or args.detach:
            return 0, document
        if os.isatty(0):
            terminal.say("press Ctrl-C to stop")
        code = _wait_for_a_signal()
        terminal.say("stopping: running requests end first")
        stop_serve()
    return code, {**document, "stopped": True}


def named_bundles(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(name, folder or reference) of each model on the command line; a name may be there twice.

    Raises:
        SpecError: There is none, or a folder has no usable name.
    """
    try:
        named = [(parse_reference(text).name, text) for text in args.references]
    except RegistryError as err:
        raise SpecError(f"{err}. For a folder write --bundle FOLDER") from err
    for text in args.folders:
        given, folder = named_value(text)
        name = Path(folder).expanduser().absolute().name.lower() if given is None else given
        try:
            check_name(name)
        except RegistryError as err:
            raise SpecError(f"--bundle: {err}. Write --bundle NAME={folder}") from err
        named.append((name, str(Path(folder).expanduser().absolute())))
    if not named and not args.clips:
        raise SpecError(
            "nothing to serve. Give a name from the registry, --bundle FOLDER or --clip MODEL"
        )
    return named


def named_clips(args: argparse.Namespace) -> list[tuple[str, BackboneSpec]]:
    """(name, CLIP) of each `--clip`.

    Raises:
        SpecError: One is no CLIP, or has no usable name.
    """
    if not args.clips and (args.labels is not None or args.templates):
        raise SpecError("--labels and --templates are for --clip. Leave them out")
    named = []
    for text in args.clips:
        given, model = named_value(text)
        clip = parse_clip(model, base=Path.cwd())
        name = clip_name(clip) if given is None else given
        try:
            check_name(name)
        except RegistryError as err:
            raise SpecError(f"--clip: {err}. Write --clip NAME={model}") from err
        named.append((name, clip))
    return named


def named_value(text: str) -> tuple[str | None, str]:
    """NAME and VALUE of `NAME=VALUE`; None where the first `=` is part of a path."""
    name, mark, value = text.partition("=")
    return (name, value) if mark and "/" not in name else (None, text)


def clip_name(clip: BackboneSpec) -> str:
    """What a CLIP is served as where nobody says: `vit-b-32-laion2b_s34b_b79k`."""
    return re.sub(r"[^a-z0-9._-]+", "-", clip.name.removeprefix("clip:").lower()).strip("-.")


def clip_bundle(args: argparse.Namespace, clip: BackboneSpec, terminal: Terminal) -> str:
    """The folder of a CLIP's bundle in the user's cache, made if it is not there."""
    from orchestrator.bundle.clip_bundles import OWN_LABELS, cached_clip_bundle, default_clips

    terminal.say(f"{clip.name} as a bundle")
    labels = given_labels(args) or with_templates(OWN_LABELS, args.templates)
    return str(cached_clip_bundle(default_clips(), clip, labels).path)


def check_bundles(args: argparse.Namespace, named: list[tuple[str, str]]) -> None:
    """Find out what cannot be served before a cluster is started for it.

    Raises:
        OrchestratorError: A bundle is not there, or the file of keys is unusable.
    """
    from orchestrator.bundle.locating import locate
    from serve.app import read_keys

    for _, bundle in named:
        locate(bundle, registry_uri=args.registry or default_registry())
    if args.keys is not None:
        read_keys(args.keys)


def settings_of(
    args: argparse.Namespace, named: list[tuple[str, str]], before: AppSettings | None
) -> AppSettings:
    """What is to be served, with what is served already.

    Args:
        args: Of the command line.
        named: As `named_bundles` gives it; of a name that is there twice the second is the
            candidate.
        before: What runs now.

    Raises:
        SpecError: The settings contradict each other.
    """
    from pydantic import ValidationError

    from serve.app import AppSettings

    kept = {} if before is None else {one.name: one for one in before.endpoints}
    endpoints = {} if args.only else dict(kept)
    try:
        for name in dict.fromkeys(name for name, _ in named):
            bundles = [bundle for other, bundle in named if other == name]
            endpoints[name] = _endpoint(args, name, bundles, kept.get(name))
        given = {
            "threads": args.threads,
            "at_once": args.at_once,
            "keys_file": args.keys and args.keys.absolute(),
        }
        return AppSettings.model_validate(
            {
                **(before.model_dump() if before else {}),
                **_said(given),
                "endpoints": tuple(endpoints.values()),
            }
        )
    except ValidationError as err:
        raise SpecError("; ".join(fault["msg"] for fault in err.errors())) from err


def _endpoint(
    args: argparse.Namespace, name: str, bundles: list[str], kept: EndpointSettings | None
) -> EndpointSettings:
    from serve.app import CandidateSettings, EndpointSettings

    beside = args.canary is not None or args.shadow
    if len(bundles) > 2 or (len(bundles) == 2 and not beside):
        raise SpecError(
            f"{name}: named {len(bundles)} times. With --canary or --shadow name it twice, the "
            "version that is trusted first"
        )
    alias = None
    if beside and len(bundles) == 1:
        if kept is None:
            raise SpecError(
                f"{name}: no version of it is served yet, beside which another could prove itself. "
                f"Name both: {name}/1 {bundles[0]}"
            )
        bundles, alias = [kept.bundle, *bundles], kept.alias
    given = {"runtime": args.runtime, "device": args.device, "own": args.own}
    registry = args.registry or (kept.registry if kept else None) or default_registry()
    return EndpointSettings.model_validate(
        {
            **(kept.model_dump() if kept else {}),
            **_said(given),
            **_replicas(args, kept),
            "name": name,
            "bundle": bundles[0],
            "alias": alias,
            "registry": registry,
            "candidate": (
                CandidateSettings(bundle=bundles[1], share=args.canary or 0.0) if beside else None
            ),
        }
    )


def _said(given: dict[str, Any]) -> dict[str, Any]:
    """What the command line says."""
    return {name: value for name, value in given.items() if value is not None}


def _replicas(args: argparse.Namespace, kept: EndpointSettings | None) -> dict[str, int]:
    """At least and at most; a number that was fixed stays one where only `--min` is given."""
    least = args.min if args.min is not None else (kept.min_replicas if kept else 1)
    if args.max is not None:
        most = args.max
    elif kept is None or kept.min_replicas == kept.max_replicas:
        most = max(1, least)  # what scales to none has one to scale to
    else:
        most = max(kept.max_replicas, least)
    return {"min_replicas": least, "max_replicas": most}


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


def _wait_for_a_signal() -> int:
    """Wait for Ctrl-C or a request to end; the exit code."""
    stopped = threading.Event()
    codes: list[int] = []

    def stop(number: int, _frame: object) -> None:
        codes.append(130 if number == signal.SIGINT else 0)
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped.wait(1.0):
            pass
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


def _share(text: str) -> float:
    number = text.removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not (text.endswith("%") and 0 < share < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no share. Use such as 10%")
    return share
