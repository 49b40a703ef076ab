"""The labels that a CLIP is asked about, for the verbs that answer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import SpecError
from orchestrator.spec.clip_models import is_clip, is_clip_folder, parse_clip
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.prompts import LabelSet, label_set, with_templates

if TYPE_CHECKING:
    from orchestrator.bundle.bundle import Bundle
    from orchestrator.bundle.predictor import Predictor


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--labels` and `--templates`."""
    parser.add_argument(
        "--labels",
        metavar="A,B,…|FILE",
        help="of a CLIP: names with commas between them, or a YAML or JSON file of labels",
    )
    parser.add_argument(
        "--templates",
        metavar="SET|TEXT",
        action="append",
        default=[],
        help="of a CLIP: default, plain, simple, none, or a sentence with {} where the label "
        "goes; repeatable",
    )


def named_clip(reference: str) -> BackboneSpec | None:
    """The CLIP that a verb's argument names, or None where it names a bundle."""
    if not is_clip(reference) and not is_clip_folder(Path(reference).expanduser()):
        return None
    if is_bundle_folder(Path(reference).expanduser()):
        return None
    return parse_clip(reference, base=Path.cwd())


def is_bundle_folder(path: Path) -> bool:
    """Whether a folder is a bundle's, which may hold a CLIP's configuration too."""
    return (path / "bundle.json").exists()


def given_labels(args: argparse.Namespace) -> LabelSet | None:
    """The labels that `--labels` gives, under the templates that `--templates` gives."""
    return None if args.labels is None else label_set(args.labels, templates=args.templates)


def bundle_named(args: argparse.Namespace) -> Bundle:
    """The bundle that BUNDLE names; of a CLIP the one that is kept in the user's cache."""
    from orchestrator.bundle.bundle import open_bundle
    from orchestrator.bundle.locating import locate

    clip = named_clip(args.bundle)
    if clip is None:
        return open_bundle(locate(args.bundle, registry_uri=args.registry))
    from orchestrator.bundle.clip_bundles import cached_clip_bundle, default_clips

    return cached_clip_bundle(default_clips(), clip)


def predictor_of(args: argparse.Namespace, bundle: Bundle, labels: LabelSet | None) -> Predictor:
    """What answers: the bundle under its own labels, or under those that are given.

    Templates and descriptions are the bundle's own where none are given.

    Raises:
        SpecError: Templates are given for a bundle without a text tower.
    """
    from orchestrator.bundle.predictor import load_predictor
    from orchestrator.bundle.zero_shot import is_open, load_zero_shot_predictor

    if labels is None and args.templates and not is_open(bundle):
        raise SpecError("--templates: this model reads no texts. Leave it out")
    if labels is None and not args.templates:
        return load_predictor(bundle, runtime=args.runtime, device=args.device)
    open_one = load_zero_shot_predictor(bundle, runtime=args.runtime, device=args.device)
    own = open_one.own_labels
    asked = own if labels is None else labels.completed_by(own)
    return open_one.labelled(with_templates(asked, args.templates))
