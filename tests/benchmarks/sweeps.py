"""P1, P3 and P4: whole sweeps against the documented pattern, on real cells and real weights.

The baseline gets the very experiments of our sweep: the same training and validation images, rates,
epochs and batch size, one thread a trial, as many trials side by side. For P1 and P3 one round of
its trials is run, one on each CPU, and its time is multiplied by the number of rounds: they share
nothing, so they take equally long.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
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
from orchestrator.runtime.folders import SweepFolder
from orchestrator.runtime.process_cache import cut_facts
from orchestrator.spec.backbone_table import facts_for
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parsing import parse_sweep
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.record import Record
from orchestrator.spec.strategy import FeatureExtraction, FineTuning, Partial
from orchestrator.tuning.sweep import SweepOutcome, run_sweep
from tests.benchmarks.documented import ALL_STAGES, Report, Work, plain_cluster, run_documented
from tests.benchmarks.harness import Measured, seconds_of
from tests.benchmarks.material import write_cells
from tests.conftest import write_tree

BACKBONE = "tf_efficientnet_lite0"
SMALL_BACKBONE = {"name": "mobilenetv3_small_100", "weights": "none"}
CPUS = 2
# What the baseline's loop does.
PLAIN = {
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "schedule": "constant",
    "label_smoothing": 0.0,
    "batch_size": 32,
}
PLAIN_TUNING = {**PLAIN, "stage_decay": 1.0, "head_lr": 1e-3, "clip_norm": 0.0, "augment": "none"}


def p1(folder: Path) -> list[Measured]:
    """16 feature-extraction trials of 10 epochs: against the documented pattern, and against one
    eager forward pass over the data with all threads."""
    n_trials, epochs, n_images, n_more = 16, 10, 512, 1968
    cells, weights = write_cells(folder / "few", n=n_images)
    more, _ = write_cells(folder / "many", n=n_more)
    block = {
        "strategy": "feature-extraction",
        "backbone": {"name": BACKBONE, "weights": str(weights)},
        "epochs": epochs,
        "head_lr": {"log": [1e-3, 1e-2]},
        **PLAIN,
    }
    with joined_cluster(cpus=CPUS):
        # Start-up apart: another sweep first, on a dozen pictures, so that processes are there.
        _sweep(folder / "first", write_tree(folder / "first" / "data", 8, seed=0), [block], 1)
        sweeps = {n_images: _sweep(folder / "few", cells, [block], n_trials)}
        sweeps[n_more] = _sweep(folder / "many", more, [block], n_trials)
    ours = sweeps[n_images]
    documented = _documented(ours, folder, rounds=n_trials // CPUS)
    rows = [
        Measured(
            "P1",
            f"{n_trials} heads, {epochs} epochs, {n_images} images at 224 px: the documented "
            "pattern against ours",
            documented.seconds / ours.seconds,
            "≥ 40×",
            _against(ours, documented),
        )
    ]
    for n, sweep in sweeps.items():
        pass_s = seconds_of(partial(_forward_pass, sweep.folder, weights))
        what = f"the same sweep on {n:,} images against one eager forward pass over them"
        beside = {"seconds_of_ours": sweep.seconds, "seconds_of_a_forward_pass": pass_s}
        rows.append(Measured("P1", what, sweep.seconds / pass_s, "≤ 1.0×", beside))
    return rows


def p3(folder: Path) -> list[Measured]:
    """8 partial trials of 5 + 10 epochs, half of them with one stage unfrozen, half with two.

    The bound is what the arithmetic allows: multiply-adds of the documented trials over those of
    ours, start-up and decoding left out.
    """
    n_trials, n_images = 8, 256
    cells, weights = write_cells(folder, n=n_images)
    block = {
        "strategy": "partial",
        "backbone": {"name": BACKBONE, "weights": str(weights)},
        "unfreeze": [1, 2],
        "seed": [0, 1, 2, 3],
        "warm_up_epochs": 5,
        "epochs": 10,
        "views": 4,
        "backbone_lr": 1e-4,
        **PLAIN_TUNING,
    }
    with joined_cluster(cpus=CPUS):
        ours = _sweep(folder, cells, [block], n_trials, searcher="grid")
    documented = _documented(ours, folder, rounds=n_trials // CPUS)
    ratio, bound = documented.seconds / ours.seconds, _bound(ours)
    seeds: dict[int, list[float]] = {}
    for record in _records(ours):
        assert isinstance(record.experiment.strategy, Partial)
        seeds.setdefault(record.experiment.strategy.unfreeze, []).append(
            record.validation["log_loss"]
        )
    beside = {
        **_against(ours, documented),
        "best_log_loss_of_our_seeds_by_unfrozen_stages": seeds,
        "bound": bound,
    }
    what = f"{n_trials} partial trials on cached views: the documented pattern against ours"
    return [
        Measured("P3", what, ratio, "≥ 2.5×", beside),
        Measured("P3", "the same as a share of the bound", ratio / bound, "≥ 0.9×", beside),
    ]


def p4(folder: Path) -> list[Measured]:
    """A mixed sweep under ASHA to the same validation loss: the median over three seeds.

    The loss to reach is the worse of the two best ones; a time is that from the start of the sweep
    to the end of the epoch that reaches it.
    """
    found = [_mixed(folder / f"seed-{seed}", seed=seed) for seed in range(3)]
    return [
        Measured(
            "P4",
            "a mixed sweep (A, B, C; two backbones; ASHA) to the same validation loss: the "
            "documented pattern against ours, median of three seeds",
            statistics.median(each["ratio"] for each in found),
            "≥ 1.5×",
            {"seeds": found},
        )
    ]


def _mixed(folder: Path, *, seed: int) -> dict[str, Any]:
    cells, weights = write_cells(folder, n=256)
    common = {
        "backbone": [{"name": BACKBONE, "weights": str(weights)}, SMALL_BACKBONE],
        "image_size": 128,
    }
    tuning = {"backbone_lr": {"log": [1e-4, 1e-3]}, "warm_up_epochs": 3, "epochs": 6}
    heads = {"head_lr": {"log": [1e-3, 1e-2]}, "epochs": 9}
    blocks = [
        {"strategy": "feature-extraction", **heads, **PLAIN, **common},
        {"strategy": "partial", "unfreeze": [1, 2, 3], **tuning, **PLAIN_TUNING, **common},
        {"strategy": "full", **tuning, **PLAIN_TUNING, **common},
    ]
    with joined_cluster(cpus=CPUS):
        start_s = time.time()
        ours = _sweep(folder, cells, blocks, 12, scheduler="asha", seed=seed)
    ends = [end for record in _records(ours) for end in _epoch_ends(ours, record)]
    documented = _documented(ours, folder)
    bests = [min(end.loss for end in run) for run in (ends, documented.reports)]
    ours_s = _first_s(ends, max(bests)) - start_s
    theirs_s = _first_s(documented.reports, max(bests)) - documented.start_s
    return {
        "ratio": theirs_s / ours_s,
        "seconds_of_ours": ours_s,
        "seconds_as_documented": theirs_s,
        "best_log_loss_of_ours": bests[0],
        "best_log_loss_as_documented": bests[1],
        "seconds_of_our_whole_sweep": ours.seconds,
        "seconds_of_the_whole_documented_sweep": documented.seconds,
    }


def _first_s(ends: list[Report], loss: float) -> float:
    return min(end.at_s for end in ends if end.loss <= loss)


def _epoch_ends(ours: SweepOutcome, record: Record) -> Iterator[Report]:
    """The epochs of one of our trials; a head's are over when its bank is."""
    written_s = (ours.folder / "trials" / record.trial / "record.json").stat().st_mtime
    at_s = datetime.fromisoformat(record.started_at).timestamp() + record.start_up_seconds
    in_bank = isinstance(record.experiment.strategy, FeatureExtraction)
    for row in record.epochs:
        at_s += row.seconds
        loss = row.validation["log_loss"]
        yield Report(record.trial, row.epoch, loss, written_s if in_bank else at_s)


@dataclass(frozen=True)
class Documented:
    """A run of the documented pattern: what it reported, when it began, how long it took."""

    reports: list[Report]
    start_s: float
    seconds: float


def _documented(ours: SweepOutcome, folder: Path, *, rounds: int | None = None) -> Documented:
    """The experiments of our sweep as documented; with `rounds` one round of them stands for all.

    That round has trials of every depth of unfreezing.
    """
    works = {record.trial: _work(ours, record.experiment) for record in _records(ours)}
    if rounds is not None:
        by_depth = sorted(works, key=lambda trial: works[trial].unfreeze)
        works = {trial: works[trial] for trial in by_depth[::rounds]}
    with plain_cluster(CPUS):
        start_s = time.time()
        reports = run_documented(
            works, folder=folder / "documented", workers=1, at_once=CPUS, asha=rounds is None
        )
        return Documented(reports, start_s, (time.time() - start_s) * (rounds or 1))


def _work(ours: SweepOutcome, experiment: Experiment) -> Work:
    """One of our experiments for the baseline."""
    examples = Examples.open(ours.folder / "data")
    held = [Path(examples.uri(int(i))) for i in examples.indices("validation")]
    strategy = experiment.strategy
    assert isinstance(strategy, FeatureExtraction | FineTuning)
    tunes = isinstance(strategy, FineTuning)
    return Work(
        train=str(held[0].parent.parent),
        validation=tuple(path.name for path in held),
        backbone=experiment.backbone.name,
        weights=experiment.backbone.weights,
        warm_up_epochs=strategy.warm_up_epochs if tunes else strategy.epochs,
        epochs=strategy.epochs if tunes else 0,
        unfreeze=strategy.unfreeze if isinstance(strategy, Partial) else ALL_STAGES * tunes,
        head_lr=strategy.head_lr,
        backbone_lr=strategy.backbone_lr if tunes else 0.0,
        batch_size=strategy.batch_size,
        size=experiment.input.size,
    )


def _records(ours: SweepOutcome) -> list[Record]:
    return list(SweepFolder(ours.folder).records().values())


def _against(ours: SweepOutcome, documented: Documented) -> dict[str, Any]:
    """Both times, and the validation losses of the best epochs of the trials that both have run."""
    theirs: dict[str, float] = {}
    for report in documented.reports:
        theirs[report.trial] = min(report.loss, theirs.get(report.trial, math.inf))
    mine = {record.trial: record.validation["log_loss"] for record in _records(ours)}
    return {
        "seconds_of_ours": ours.seconds,
        "seconds_as_documented": documented.seconds,
        "best_log_loss_of_ours": {trial: mine[trial] for trial in theirs},
        "best_log_loss_as_documented": theirs,
    }


def _bound(ours: SweepOutcome) -> float:
    """Multiply-adds of the documented partial trials over those of ours, filling included.

    In forward passes over the training images: a backward pass through the trained stages counts as
    two forward passes through them, and validation images count by their number.
    """
    examples = Examples.open(ours.folder / "data")
    n_validation = len(examples.indices("validation")) / len(examples.indices("train"))
    theirs, mine, views = 0.0, 0.0, 0
    for record in _records(ours):
        experiment = record.experiment
        strategy = experiment.strategy
        assert isinstance(strategy, Partial)
        facts = cut_facts(experiment.backbone, experiment.input.size, strategy.unfreeze)
        assert facts is not None
        tuned = 1 - facts.share
        theirs += strategy.warm_up_epochs * (1 + n_validation)
        theirs += strategy.epochs * (1 + 2 * tuned + n_validation)
        mine += strategy.epochs * tuned * (3 + n_validation)
        views = strategy.n_views
    return theirs / (mine + views * (1 + n_validation))


def _sweep(
    folder: Path,
    images: Path,
    blocks: list[dict[str, Any]],
    n_trials: int,
    *,
    searcher: str = "random",
    scheduler: str = "none",
    seed: int = 0,
) -> SweepOutcome:
    raw = {
        "name": "ours",
        "task": "image-classification",
        "data": {"train": str(images), "validation": 0.15},
        "search": blocks,
        "defaults": {"seed": seed},
        "budget": {"trials": n_trials},
        "objective": {"metric": "log_loss"},
        "tuner": {"searcher": searcher, "scheduler": scheduler},
        "workers": {"per_trial": 1, "cpus": 1},
        "storage": str(folder / "runs"),
    }
    return run_sweep(parse_sweep(raw, base=folder))


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
