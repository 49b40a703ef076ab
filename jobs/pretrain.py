"""`orchestrator pretrain SPEC`: domain-adaptive pretraining alone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from jobs.spec_arguments import add_address_argument, add_spec_arguments
from jobs.terminal import Terminal
from orchestrator.spec.mirror import location_of, open_storage

if TYPE_CHECKING:
    from orchestrator.spec.pretraining_job import PretrainingJob
    from orchestrator.spec.sweep import SweepSpec
    from orchestrator.tuning.adapting import Adaptation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_spec_arguments(parser)
    add_address_argument(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    from orchestrator.spec.pretraining_job import load_pretraining

    spec = load_pretraining(args.spec, args.overrides, base=args.relative_to)
    from orchestrator.runtime.cluster import joined_cluster
    from orchestrator.tuning.adapting import ensure_pretrained, lines_on

    adaptations = _adaptations(spec, terminal)
    if any(adaptation.folder.provenance() is None for adaptation in adaptations):
        with joined_cluster(args.address) as cluster:
            ensure_pretrained(adaptations, cluster, spec.workers, progress=terminal)
    rows = []
    for adaptation in adaptations:
        provenance = adaptation.folder.provenance()
        assert provenance is not None
        for line in lines_on(provenance):
            terminal.show(f"{adaptation.backbone.name}: {line}")
        terminal.show(f"pretrained: {location_of(adaptation.folder.root)}")
        rows.append(
            {
                "folder": location_of(adaptation.folder.root),
                "digest": adaptation.digest,
                **{name: provenance[name] for name in ("before", "after", "corpus", "seconds")},
                "backbone": adaptation.backbone.name,
            }
        )
    return 0, {"pretrained": rows}


def _adaptations(spec: PretrainingJob | SweepSpec, terminal: Terminal) -> list[Adaptation]:
    from orchestrator.spec.sweep import SweepSpec
    from orchestrator.tuning.adapting import adaptation_of, corpus_for, unique
    from orchestrator.tuning.preparing import prepare_sweep

    if isinstance(spec, SweepSpec):
        return unique(prepare_sweep(spec, progress=terminal).adaptations())
    storage, pretraining = open_storage(spec.storage), spec.pretraining
    corpus = corpus_for(
        pretraining, spec.backbones, examples=None, cache=storage / "data", progress=terminal
    )
    return unique(adaptation_of(pretraining, b, corpus, storage=storage) for b in spec.backbones)
