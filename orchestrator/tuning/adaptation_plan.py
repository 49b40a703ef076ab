"""What a plan says of a sweep's pretrainings: their cost, what they brought, and their neighbours.

The neighbours are the cheapest evidence there is: whether the nearest training examples by frozen
features are of the same class, before the pretraining and after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from orchestrator.data.examples import Examples
from orchestrator.features.store import FeatureStore
from orchestrator.features.transferability import knn_accuracy
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.search_space import Block
from orchestrator.training.objectives import build_objective
from orchestrator.training.pretraining import Objective
from orchestrator.training.timing import median_seconds
from orchestrator.training.workers import Workers
from orchestrator.tuning.adapting import Adaptation
from orchestrator.tuning.experiments import ExperimentFactory, block_backbones
from orchestrator.tuning.plan import CostBook
from orchestrator.tuning.progress import Progress
from orchestrator.tuning.stored_features import training_features

PRETRAININGS = "pretrainings"
PROBE_ROWS, PROBE_STEPS = 8, 3
MOST_NEIGHBOURS = 3_000  # examples that neighbours are sought among

Row = dict[str, Any]


def pretraining_rows(
    adaptations: Iterable[Adaptation], costs: CostBook, *, probe: bool, progress: Progress
) -> list[Row]:
    """Each pretraining as `plan.json` has it.

    Args:
        adaptations: Of the sweep.
        costs: Known costs; new measurements are added.
        probe: Whether to measure what is not known.
        progress: Told what is measured.
    """
    return [_row(adaptation, costs, probe, progress) for adaptation in adaptations]


def seconds_to_come(rows: Iterable[Row]) -> float | None:
    """Of the pretrainings that have not been run; None when a cost is not known."""
    left = [row["seconds"] for row in rows if not row["done"]]
    return None if None in left else float(sum(left))


def with_neighbours(
    rows: Sequence[Row],
    blocks: Sequence[Block],
    factory: ExperimentFactory,
    *,
    examples: Examples,
    store: FeatureStore,
) -> list[Row]:
    """The rows with `neighbours`: accuracies before and after, where both features are stored."""
    found: dict[str, dict[str, float]] = {}
    if examples.multilabel:
        return list(rows)
    for block in blocks:
        if block.pretraining is None:
            continue
        plain = block.model_copy(update={"strategy": block.rung, "then": None, "pretraining": None})
        for backbone in block_backbones(block):
            values = {**block.vetted(), "backbone": backbone.model_dump(exclude_none=True)}
            after = factory.make(block, values)
            scores = [
                _neighbours(experiment, examples, store)
                for experiment in (factory.make(plain, values), after)
            ]
            if None not in scores:
                pair = dict(
                    zip(("before", "after"), map(float, filter(None, scores)), strict=False)
                )
                found[factory.adapted[backbone, block.pretraining].digest or ""] = pair
    return [{**row, "neighbours": found.get(row["digest"])} for row in rows]


def _row(adaptation: Adaptation, costs: CostBook, probe: bool, progress: Progress) -> Row:
    provenance = adaptation.folder.provenance()
    key = _cost_key(adaptation, costs.device)
    n_rows = adaptation.n_rows()
    # What a new head takes is not proportional to the rows, as an epoch is.
    head_key = f"{key}-{n_rows}-{adaptation.corpus.n_held_out}"
    row_s, head_s = costs.seconds(key), costs.seconds(head_key)
    if provenance is None and None in (row_s, head_s) and probe:
        progress.say(f"measuring {adaptation}")
        row_s, head_s = _measured(adaptation, costs.device)
        costs.keep_seconds(key, row_s)
        costs.keep_seconds(head_key, head_s)
    epochs = adaptation.pretraining.epochs
    return {
        "what": str(adaptation),
        "backbone": adaptation.backbone.name,
        "parent_weights": adaptation.weights_digest,
        "digest": adaptation.digest,
        "folder": str(adaptation.folder.root),
        "documents": len(adaptation.corpus),
        "held_out": adaptation.corpus.n_held_out,
        "rows": n_rows,
        "epochs": epochs,
        "seconds": None if row_s is None or head_s is None else row_s * n_rows * epochs + head_s,
        "done": provenance is not None,
        "before": None if provenance is None else provenance["before"],
        "after": None if provenance is None else provenance["after"],
    }


def _cost_key(adaptation: Adaptation, device: torch.device) -> str:
    params = adaptation.pretraining
    shaping = ("method", "max_length", "mask_fraction", "image_size", "precision")
    parts = {
        "backbone": adaptation.backbone.name,
        "threads": torch.get_num_threads(),
        **({} if device.type == "cpu" else {"device": device.type}),
        **{name: value for name, value in params.settings.items() if name in shaping},
    }
    return f"pretraining-{digest_of(parts)[:16]}"


def _measured(adaptation: Adaptation, device: torch.device) -> tuple[float, float]:
    """Seconds a row of a training step, and those of the warm-up, from a few real steps."""
    objective: Objective = build_objective(
        adaptation.pretraining,
        adaptation.backbone,
        adaptation.corpus.examples,
        workers=Workers(rank=0, world_size=1, device=device),
        threads=torch.get_num_threads(),
    )
    warm_up_s = objective.warm_up_seconds()
    rows = np.arange(min(PROBE_ROWS, objective.n_rows))
    objective.module.train()
    batches = iter(list(objective.batches([rows] * PROBE_STEPS, 1)))
    step_s = median_seconds(
        lambda: objective.loss(objective.module, next(batches)).backward(),
        device,
        times=PROBE_STEPS,
    )
    return step_s / len(rows), warm_up_s


def _neighbours(experiment: Experiment, examples: Examples, store: FeatureStore) -> float | None:
    """Leave-one-out accuracy of the nearest training examples; None where nothing is stored."""
    found = training_features(experiment, examples, store, most=MOST_NEIGHBOURS)
    if found is None:
        return None
    rows, features = found
    return knn_accuracy(features, examples.targets()[rows].astype(np.int64))
