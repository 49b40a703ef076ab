"""The models that `deploy` is told to serve: references, folders and CLIPs, each with its name."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from jobs.label_arguments import given_labels
from jobs.registry_arguments import default_registry
from jobs.terminal import Terminal
from orchestrator.bundle.reference import check_name, parse_reference
from orchestrator.errors import RegistryError, SpecError
from orchestrator.spec.clip_models import parse_clip
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.prompts import with_templates


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
