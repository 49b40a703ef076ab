"""What `deploy` makes of its command line and of what is served already."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from jobs.registry_arguments import default_registry
from orchestrator.errors import SpecError

if TYPE_CHECKING:
    from serve.app import AppSettings, EndpointSettings


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
    given = {
        "runtime": args.runtime,
        "device": args.device,
        "own": args.own,
        "batch_rows": args.batch,
    }
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
