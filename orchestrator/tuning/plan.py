"""The Plan: what a sweep will compute, what its trials share, and what it will cost.

A step of training is measured, not guessed: at most five steps for each (backbone, strategy,
input size, precision) on this machine. Costs are kept beside the sweeps and used again.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.data.examples import Examples
from orchestrator.features.filling import search_rows
from orchestrator.models.building import build_backbone
from orchestrator.models.head import build_head
from orchestrator.models.placing import placed
from orchestrator.runtime.feature_filling import FeatureNeed
from orchestrator.runtime.memory import peak_memory_bytes, reset_peak_memory
from orchestrator.spec.backbone_table import facts_for
from orchestrator.spec.durable import write_json
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.search_space import Block
from orchestrator.spec.sweep import SweepSpec
from orchestrator.training.network import Network
from orchestrator.training.phases import Phase, compile_phases
from orchestrator.tuning.experiments import ExperimentFactory, values_of
from orchestrator.tuning.progress import Progress
from orchestrator.tuning.suggestions import block_size

PROBE_STEPS = 5
PROBE_BATCH = 8
START_UP_S = 0.5  # of a trial in a reused actor
FEATURE_ROW_S = 5e-6  # of a head's training step on stored features, an image
BYTES_PER_NUMBER = 4


@dataclass(frozen=True)
class StepCost:
    """What one image costs: seconds of training and of a forward pass, and peak memory."""

    train_s: float
    forward_s: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class BlockPlan:
    """One block's part of a sweep."""

    block: int
    strategy: str
    backbones: tuple[str, ...]
    trials: int
    seconds_each: float | None
    peak_memory_bytes: int | None
    checkpoint_bytes_each: int


def needs_of(spec: SweepSpec, factory: ExperimentFactory) -> list[FeatureNeed]:
    """The stored features that some trial of the search may read, each once."""
    found: dict[FeatureNeed, None] = {}
    for block in spec.search:
        for experiment in corner_experiments(block, factory):
            found.update(dict.fromkeys(needs_of_experiment(experiment)))
    return list(found)


def needs_of_experiment(experiment: Experiment) -> list[FeatureNeed]:
    """The stored features that an experiment reads; none from scratch."""
    strategy = experiment.strategy
    if strategy.strategy == "scratch":
        return []
    reads = any(phase.from_features for phase in _phases(experiment))
    return [
        FeatureNeed(
            backbone=experiment.backbone,
            weights_digest=experiment.weights_digest,
            input=experiment.input,
            pooling=strategy.pooling,
            view=view,
        )
        for view in range(strategy.views if reads else 1)
    ]


def corner_experiments(block: Block, factory: ExperimentFactory) -> list[Experiment]:
    """One experiment for each combination of what decides the cost of a block's trials."""
    names = ["backbone", "image_size", "crop_fraction", "pooling", "views", "unfreeze"]
    present = [name for name in names if name in block.dimensions]
    lists = [_corners(block, name) for name in present]
    return [
        factory.make(block, {**block.vetted(), **dict(zip(present, values, strict=True))})
        for values in itertools.product(*lists)
    ]


def make_plan(
    spec: SweepSpec,
    factory: ExperimentFactory,
    examples: Examples,
    *,
    at_once: int,
    costs: CostBook,
    probe: bool,
    progress: Progress,
) -> dict[str, Any]:
    """The content of `plan.json`.

    Args:
        spec: The sweep.
        factory: Makes its experiments.
        examples: Its data.
        at_once: Trials side by side.
        costs: Known costs of steps; new measurements are added.
        probe: Whether to measure what is not known.
        progress: Told what is measured.
    """
    shares = _shares(spec)
    blocks = [
        _block_plan(n, block, shares[n], factory, examples, costs, probe, progress)
        for n, block in enumerate(spec.search)
    ]
    shared = _shared(spec, factory, examples, shares, costs)
    return {
        "trials": sum(shares),
        "at_once": at_once,
        "blocks": [asdict(plan) for plan in blocks],
        "shared": shared,
        "forecast": _forecast(spec, blocks, shared, at_once),
    }


class CostBook:
    """Measured costs, kept in a file beside the sweeps."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._costs: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            self._costs = {}

    def find(self, experiment: Experiment) -> StepCost | None:
        """The cost of an image under this experiment, if it was measured."""
        found = self._costs.get(_cost_key(experiment))
        return None if found is None else StepCost(**found)

    def measure(self, experiment: Experiment) -> StepCost:
        """Measure it now, in at most PROBE_STEPS steps, and keep it."""
        cost = _measured(experiment)
        self._costs[_cost_key(experiment)] = asdict(cost)
        write_json(self._path, self._costs)
        return cost


def _cost_key(experiment: Experiment) -> str:
    strategy = experiment.strategy
    parts = {
        "backbone": experiment.backbone.name,
        "size": experiment.input.size,
        "strategy": strategy.strategy,
        "unfreeze": getattr(strategy, "unfreeze", None),
        "precision": strategy.precision,
        "threads": torch.get_num_threads(),
    }
    return digest_of(parts)[:16]


def _measured(experiment: Experiment) -> StepCost:
    """Seconds an image and peak bytes, from a few real steps on random images."""
    strategy = experiment.strategy
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = experiment.backbone.model_copy(update={"weights": "none"})
    reset_peak_memory(device)
    backbone = build_backbone(spec, image_size=experiment.input.size)
    head = build_head(
        strategy,
        n_features=backbone.feature_width(strategy.pooling),
        n_outputs=len(experiment.task.labels),
        seed=0,
    )
    network = Network(backbone, head, pooling=strategy.pooling)
    placed(network, device)
    size = experiment.input.size
    images = torch.rand(PROBE_BATCH, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    phase = compile_phases(strategy, backbone.n_stages)[-1]
    network.enter(phase)
    network.train()

    def forward() -> None:
        with torch.inference_mode():
            network(images)

    def step() -> None:
        network(images).float().square().mean().backward()

    forward_s = _median_s(forward, device)
    train_s = forward_s if phase.from_features else _median_s(step, device)
    return StepCost(
        train_s=train_s / PROBE_BATCH,
        forward_s=forward_s / PROBE_BATCH,
        peak_memory_bytes=peak_memory_bytes(device),
    )


def _median_s(action: Any, device: torch.device) -> float:
    times = []
    for _ in range(PROBE_STEPS):
        started_s = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started_s)
    return sorted(times)[len(times) // 2]


def _corners(block: Block, name: str) -> list[Any]:
    listed = values_of(block, name)
    return listed if listed else block.dimensions[name].extremes


def _shares(spec: SweepSpec) -> list[int]:
    """How many trials each block gets when blocks are visited in turn."""
    sizes = [block_size(block) for block in spec.search]
    left = spec.budget.trials if spec.budget.trials is not None else 10 * len(sizes)
    shares = [0] * len(sizes)
    while left > 0 and any(share < size for share, size in zip(shares, sizes, strict=True)):
        for n, size in enumerate(sizes):
            if left > 0 and shares[n] < size:
                shares[n] += 1
                left -= 1
    return shares


def _block_plan(
    number: int,
    block: Block,
    trials: int,
    factory: ExperimentFactory,
    examples: Examples,
    costs: CostBook,
    probe: bool,
    progress: Progress,
) -> BlockPlan:
    experiments = corner_experiments(block, factory)
    seconds: list[float] = []
    peaks: list[int] = []
    for experiment in experiments:
        cost = costs.find(experiment)
        if cost is None and probe:
            progress.say(
                f"measuring {experiment.strategy.strategy} {experiment.backbone.name} "
                f"at {experiment.input.size} px"
            )
            cost = costs.measure(experiment)
        if cost is not None:
            seconds.append(_trial_seconds(experiment, examples, cost))
            peaks.append(cost.peak_memory_bytes)
    known = len(seconds) == len(experiments)
    return BlockPlan(
        block=number,
        strategy=block.strategy,
        backbones=tuple(dict.fromkeys(e.backbone.name for e in experiments)),
        trials=trials,
        seconds_each=sum(seconds) / len(seconds) if known else None,
        peak_memory_bytes=max(peaks) if known else None,
        checkpoint_bytes_each=max(_checkpoint_bytes(experiment) for experiment in experiments),
    )


def _trial_seconds(experiment: Experiment, examples: Examples, cost: StepCost) -> float:
    """Forecast of one trial run to its end; reading features costs next to nothing."""
    n_train, n_validation = (len(examples.indices(s)) for s in ("train", "validation"))
    total = START_UP_S
    for phase in _phases(experiment):
        if not phase.from_features:
            each = n_train * cost.train_s + n_validation * cost.forward_s
            total += phase.epochs * each
        else:
            total += phase.epochs * n_train * FEATURE_ROW_S
    return total


def _checkpoint_bytes(experiment: Experiment) -> int:
    """At most: weights and two moments of all that the strategy may train."""
    facts = facts_for(experiment.backbone.name)
    trained = facts.feature_width * len(experiment.task.labels)
    if experiment.strategy.strategy != "feature-extraction":
        trained += facts.n_parameters
    return 3 * BYTES_PER_NUMBER * trained


def feature_width(need: FeatureNeed) -> int:
    """Numbers an image in the store."""
    facts = facts_for(need.backbone.name)
    return facts.feature_width if need.pooling == "last" else facts.multi_scale_width


def _phases(experiment: Experiment) -> tuple[Phase, ...]:
    n_stages = facts_for(experiment.backbone.name).n_stages
    return compile_phases(experiment.strategy, n_stages)


def _shared(
    spec: SweepSpec,
    factory: ExperimentFactory,
    examples: Examples,
    shares: Sequence[int],
    costs: CostBook,
) -> list[dict[str, Any]]:
    """Features that several trials read: by how many, and the forward passes that saves."""
    n_images = len(search_rows(examples))
    rows = []
    for need in needs_of(spec, factory):
        readers, passes, forward_s = 0.0, 0.0, None
        for block, share in zip(spec.search, shares, strict=True):
            corners = corner_experiments(block, factory)
            for experiment in (e for e in corners if need in needs_of_experiment(e)):
                trials = share / len(corners)
                epochs = sum(p.epochs for p in _phases(experiment) if p.from_features)
                readers += trials
                passes += trials * epochs / experiment.strategy.views
                cost = costs.find(experiment)
                forward_s = cost.forward_s if cost is not None else forward_s
        rows.append(
            {
                "what": f"{need.backbone.name} {need.pooling} features at {need.input.size} px, "
                f"view {need.view}",
                "trials": round(readers, 1),
                "images": n_images,
                "bytes": n_images * feature_width(need) * BYTES_PER_NUMBER,
                "forward_passes_saved": round(max(0.0, passes - 1) * n_images),
                "seconds_each": None if forward_s is None else round(forward_s * n_images, 1),
            }
        )
    return rows


def _forecast(
    spec: SweepSpec, blocks: Sequence[BlockPlan], shared: Sequence[dict[str, Any]], at_once: int
) -> dict[str, Any] | None:
    """Wall and device time, memory and disk of the whole sweep; None when a cost is unknown."""
    if any(plan.seconds_each is None for plan in blocks):
        return None
    device_s = sum(plan.trials * (plan.seconds_each or 0.0) for plan in blocks)
    device_s += sum(row["seconds_each"] or 0.0 for row in shared)
    seconds = device_s / max(1, at_once)
    limit_s = math.inf if spec.budget.minutes is None else spec.budget.minutes * 60
    return {
        "seconds": round(min(seconds, limit_s), 1),
        "device_seconds": round(device_s, 1),
        "peak_memory_bytes": max(plan.peak_memory_bytes or 0 for plan in blocks),
        "feature_bytes": sum(row["bytes"] for row in shared),
        "checkpoint_bytes": sum(plan.trials * plan.checkpoint_bytes_each for plan in blocks),
        "limited_by": "minutes" if seconds > limit_s else "trials",
    }
