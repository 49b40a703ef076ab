"""P1 and P3: whole sweeps against the documented pattern, on real cells and real weights.

Two of the documented trials are run, side by side on two CPUs, and their time is multiplied by the
number of such pairs that the sweep has: its trials share nothing, so they take equally long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from orchestrator.data.batches import iterate_pixels
from orchestrator.data.examples import Examples
from orchestrator.data.transforms import normalized
from orchestrator.features.store import batched
from orchestrator.models.building import build_backbone
from orchestrator.models.placing import placed
from orchestrator.runtime.cluster import joined_cluster
from orchestrator.spec.backbone_table import facts_for
from orchestrator.spec.parsing import parse_sweep
from orchestrator.spec.parts import BackboneSpec
from orchestrator.tuning.sweep import SweepOutcome, run_sweep
from tests.benchmarks.documented import Work, run_documented
from tests.benchmarks.harness import Measured, seconds_of
from tests.benchmarks.material import write_cells

BACKBONE = "tf_efficientnet_lite0"
N_IMAGES, CPUS, LR = 512, 2, 1e-3


def p1(folder: Path) -> list[Measured]:
    """16 feature-extraction trials of 10 epochs: against the documented pattern, and against one
    eager forward pass over the data with all threads."""
    n_trials, epochs = 16, 10
    cells, weights = write_cells(folder, n=N_IMAGES)
    block = {"strategy": "feature-extraction", "epochs": epochs, "head_lr": {"log": [1e-3, 1e-2]}}
    with joined_cluster(cpus=CPUS):
        outcome = _sweep(folder, cells, weights, block, n_trials)
        work = Work(str(cells), BACKBONE, str(weights), N_IMAGES, epochs, 0, 0, LR)
        losses: list[float] = []
        pair_s = seconds_of(lambda: losses.extend(_documented([work, work], folder)))
    documented_s = pair_s * n_trials / CPUS
    pass_s = seconds_of(lambda: _forward_pass(outcome.folder, weights))
    beside = {
        "seconds_of_ours": outcome.seconds,
        "seconds_as_documented": documented_s,
        "seconds_of_a_documented_pair": pair_s,
        "seconds_of_a_forward_pass": pass_s,
        "log_loss_of_ours": outcome.best.validation["log_loss"] if outcome.best else None,
        "log_loss_as_documented": losses,
    }
    return [
        Measured(
            "P1",
            f"{n_trials} heads, {epochs} epochs, {N_IMAGES} images at 224 px: the documented "
            "pattern against ours",
            documented_s / outcome.seconds,
            "≥ 40×",
            beside,
        ),
        Measured(
            "P1",
            "the same sweep against one eager forward pass over its images",
            outcome.seconds / pass_s,
            "≤ 1.0×",
            beside,
        ),
    ]


def p3(folder: Path) -> list[Measured]:
    """8 partial trials of 5 + 10 epochs, half of them with one stage unfrozen, half with two."""
    n_trials, warm_up, epochs = 8, 5, 10
    cells, weights = write_cells(folder, n=N_IMAGES)
    block = {
        "strategy": "partial",
        "unfreeze": [1, 2],
        "seed": [0, 1, 2, 3],
        "warm_up_epochs": warm_up,
        "epochs": epochs,
        "views": 4,
        "augment": "none",
        "backbone_lr": 1e-4,
    }
    with joined_cluster(cpus=CPUS):
        outcome = _sweep(folder, cells, weights, block, n_trials, searcher="grid")
        works = [
            Work(str(cells), BACKBONE, str(weights), N_IMAGES, warm_up, epochs, unfreeze, LR)
            for unfreeze in (1, 2)
        ]
        losses: list[float] = []
        pair_s = seconds_of(lambda: losses.extend(_documented(works, folder)))
    documented_s = pair_s * n_trials / CPUS
    return [
        Measured(
            "P3",
            f"{n_trials} partial trials on cached views: the documented pattern against ours",
            documented_s / outcome.seconds,
            "≥ 2.5×",
            {
                "seconds_of_ours": outcome.seconds,
                "seconds_as_documented": documented_s,
                "seconds_of_a_documented_pair": pair_s,
                "log_loss_of_ours": outcome.best.validation["log_loss"] if outcome.best else None,
                "log_loss_as_documented": losses,
            },
        )
    ]


def _sweep(
    folder: Path,
    cells: Path,
    weights: Path,
    block: dict[str, Any],
    n_trials: int,
    *,
    searcher: str = "random",
) -> SweepOutcome:
    backbone = {"name": BACKBONE, "weights": str(weights)}
    raw = {
        "name": "ours",
        "task": "image-classification",
        "data": {"train": str(cells), "validation": 0.15},
        "search": [{"backbone": backbone, **block}],
        "budget": {"trials": n_trials},
        "objective": {"metric": "log_loss"},
        "tuner": {"searcher": searcher, "scheduler": "none"},
        "workers": {"per_trial": 1, "cpus": 1},
        "storage": str(folder / "runs"),
    }
    return run_sweep(parse_sweep(raw, base=folder))


def _documented(works: list[Work], folder: Path) -> list[float]:
    return run_documented(works, folder=folder / "documented", workers=1, at_once=CPUS)


def _forward_pass(sweep: Path, weights: Path) -> None:
    """All images of a sweep once through the backbone, eagerly, with all threads."""
    torch.set_num_threads(CPUS)
    examples, contract = Examples.open(sweep / "data"), facts_for(BACKBONE).input
    spec = BackboneSpec(name=BACKBONE, weights=str(weights))
    backbone = placed(build_backbone(spec).eval(), torch.device("cpu"))
    for _, pixels in iterate_pixels(
        examples,
        batched(examples.indices("train"), 32),
        contract=contract,
        augment="none",
        seed=0,
        epoch=0,
        threads=CPUS,
    ):
        images = torch.from_numpy(normalized(pixels, contract))
        with torch.inference_mode():
            backbone.features(images.to(memory_format=torch.channels_last), pooling="last")
