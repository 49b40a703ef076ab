"""The arguments that every verb with a SPEC takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from jobs.terminal import Terminal
from orchestrator.spec.parsing import load_spec, notes_on
from orchestrator.spec.sweep import SweepSpec


def add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    """SPEC, `--set` and `--relative-to`."""
    parser.add_argument("spec", metavar="SPEC", help="the sweep's YAML file")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a value, e.g. --set budget.trials=4 --set search.0.epochs=3",
    )
    parser.add_argument(
        "--relative-to",
        metavar="FOLDER",
        type=Path,
        help="what relative paths in SPEC are relative to; its own folder when not given",
    )


def add_address_argument(parser: argparse.ArgumentParser) -> None:
    """`--address`."""
    parser.add_argument(
        "--address", help="a Ray cluster to join, e.g. auto; without it Ray starts in-process"
    )


def spec_from(args: argparse.Namespace, terminal: Terminal) -> SweepSpec:
    """The spec that the arguments name, with its notes shown."""
    spec = load_spec(args.spec, args.overrides, base=args.relative_to)
    for note in notes_on(spec):
        terminal.say(f"note: {note}")
    return spec
