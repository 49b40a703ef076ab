"""The Plan: what a sweep will compute, what its trials share, and what it will cost.

A step of training is measured, not guessed: at most five steps for each (backbone, strategy,
input size, precision) on this machine. Costs are kept beside the sweeps and used again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.data.examples import Examples
from orchestrator.data.pieces import pieces_of
from orchestrator.errors import CapacityError, Fault
from orchestrator.features.network_inputs import random_inputs
from orchestrator.models.backbone import Inputs, Prefix
from orchestrator.models.building import build_backbone
from orchestrator.models.classifier import build_classifier_head
from orchestrator.models.placing import one_device, placed
from orchestrator.runtime.cluster import Cluster
from orchestrator.runtime.folders import SweepFolder
from orchestrator.runtime.memory import peak_memory_bytes, reset_peak_memory, resident_bytes
from orchestrator.spec import mirror
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.durable import write_json
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import size_text
from orchestrator.spec.record import Record
from orchestrator.spec.sweep import SweepSpec
from orchestrator.training.network import Network
from orchestrator.training.phases import Phase, compile_phases
from orchestrator.training.timing import median_seconds
from orchestrator.tuning.banking import planned_banks
from orchestrator.tuning.experiments import ExperimentFactory
from orchestrator.tuning.memory import (
    BYTES_PER_NUMBER,
    TrialMemory,
    trial_memory,
    trials_that_fit,
)
from orchestrator.tuning.progress import Progress
from orchestrator.tuning.sharing import (
    Shared,
    block_shares,
    corner_experiments,
    free_bytes,
    phases_of,
    stored_cut_of,
)

ACTUAL = "actual"
PROBE_STEPS = 5
PROBE_BATCH = 8
CHECKPOINTS_AT_ONCE = 2  # of a running trial: the last one and the best
START_UP_S = 0.5  # of a trial in a reused actor
FEATURE_ROW_S = 5e-6  # of a head's training step on stored features, an image
_FORMAT = 2  # of stored costs


@dataclass(frozen=True)
class StepCost:
    """What one example costs: seconds of training and of a forward pass, and memory.

    Attributes:
        train_s: Of a training step.
        forward_s: Of a forward pass.
        process_bytes: Of the process once the network is built.
        example_bytes: Of one example's activations in a training step.
        trained: Parameters that the strategy trains.
    """

    train_s: float
    forward_s: float
    process_bytes: int
    example_bytes: float
    trained: int


@dataclass(frozen=True)
class Part:
    """An experiment of a plan, and the cut at which its fine-tuning starts from stored outputs."""

    experiment: Experiment
    cut: int | None


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


def make_plan(
    spec: SweepSpec,
    factory: ExperimentFactory,
    examples: Examples,
    *,
    shared: Sequence[Shared],
    cluster: Cluster,
    costs: CostBook,
    probe: bool,
    progress: Progress,
    pretrainings_s: float | None = 0.0,
) -> dict[str, Any]:
    """The content of `plan.json`.

    Args:
        spec: The sweep.
        factory: Makes its experiments.
        examples: Its data.
        shared: What its trials share.
        cluster: Where it runs.
        costs: Known costs of steps; new measurements are added.
        probe: Whether to measure what is not known.
        progress: Told what is measured.
        pretrainings_s: Of the pretrainings to come, one after the other; None when not known.

    Raises:
        CapacityError: A trial does not fit the cluster's CPUs, GPUs or memory, or checkpoints the
            disk.
    """
    shares = block_shares(spec)
    stored = {work.need for work in shared if work.stored}
    needs: list[TrialMemory] = []
    blocks = []
    for number, (block, trials) in enumerate(zip(spec.search, shares, strict=True)):
        parts = [
            Part(experiment, stored_cut_of(experiment, stored))
            for experiment in corner_experiments(block, factory)
        ]
        _measure_unknown(parts, costs, probe=probe, progress=progress)
        block_needs = _memory_needs(parts, costs, n_workers=spec.workers.fewest)
        blocks.append(
            _block_plan(number, block.strategy, trials, parts, examples, costs, block_needs)
        )
        needs += block_needs
    at_once = _at_once(spec, cluster, needs, progress)
    _check_disk(spec, blocks, at_once, progress)
    rows = [_row(work, costs) for work in shared]
    return {
        "trials": sum(shares),
        "at_once": at_once,
        "blocks": [asdict(plan) for plan in blocks],
        "shared": rows,
        "banks": planned_banks(spec.search, shares, factory),
        "forecast": _forecast(spec, blocks, shared, costs, at_once, pretrainings_s),
    }


class CostBook:
    """Measured costs, kept in a file beside the sweeps."""

    def __init__(self, path: Path, *, threads: int, use_gpu: bool = False) -> None:
        """Read the file.

        Args:
            path: Of the costs.
            threads: That a trial computes on; costs on others are not known from them.
            use_gpu: Whether trials may use a GPU: costs on a CPU say nothing of it.
        """
        self._path, self._threads = path, threads
        self.device = one_device(use_gpu=use_gpu)
        mirror.refresh(path)
        try:
            self._costs: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            self._costs = {}

    @classmethod
    def of(cls, spec: SweepSpec, storage: Path) -> CostBook:
        """What was measured up to now in a storage, by whomever, on what the sweep may use."""
        workers = spec.workers
        return cls(storage / "costs.json", threads=workers.threads, use_gpu=workers.gpus > 0)

    def find(self, part: Part) -> StepCost | None:
        """The cost of an image, if it was measured."""
        found = self._costs.get(self._key(part))
        return None if found is None else StepCost(**found)

    def forward_s(self, backbone: str, image_size: int) -> float | None:
        """Seconds an image of a backbone's forward pass, if any step of it was measured."""
        found = self._costs.get(self._forward_key(backbone, image_size))
        return None if found is None else float(found["forward_s"])

    def seconds(self, key: str) -> float | None:
        """Seconds that were kept under a key."""
        found = self._costs.get(key)
        return None if found is None else float(found["seconds"])

    def keep_seconds(self, key: str, seconds: float) -> None:
        """Keep measured seconds."""
        self._costs[key] = {"seconds": seconds}
        write_json(self._path, self._costs)

    def measure(self, part: Part) -> None:
        """Measure it now, in at most PROBE_STEPS steps, and keep it."""
        assert torch.get_num_threads() == self._threads, "measured on other threads"
        cost = asdict(_measured(part, self.device))
        experiment = part.experiment
        self._costs[self._key(part)] = cost
        self._costs[self._forward_key(experiment.backbone.name, experiment.input.size)] = cost
        write_json(self._path, self._costs)

    def _key(self, part: Part) -> str:
        return digest_of({"work": cost_key(part), **self._place()})[:16]

    def _place(self) -> dict[str, Any]:
        """What a cost depends on beside the work; of a CPU only the threads, as ever."""
        device = {} if self.device.type == "cpu" else {"device": self.device.type}
        return {"threads": self._threads, **device}

    def _forward_key(self, backbone: str, image_size: int) -> str:
        parts = {
            "backbone": backbone,
            "size": image_size,
            "format": _FORMAT,
            **self._place(),
        }
        return digest_of(parts)[:16]


def cost_key(part: Part) -> str:
    """Equal for trials of which an example costs the same on one machine."""
    strategy = part.experiment.strategy
    parts = {
        "backbone": part.experiment.backbone.name,
        "size": part.experiment.input.size,
        "strategy": strategy.strategy,
        "unfreeze": getattr(strategy, "unfreeze", None),
        "adapter": getattr(strategy, "adapter", "none"),
        "cut": part.cut,
        "precision": strategy.precision,
        "format": _FORMAT,
    }
    return digest_of(parts)[:16]


def _measured(part: Part, device: torch.device) -> StepCost:
    """Seconds and bytes an example, from a few real steps on random inputs."""
    experiment, strategy = part.experiment, part.experiment.strategy
    spec = experiment.backbone.model_copy(update={"weights": "none"})
    backbone = build_backbone(spec, size=experiment.input.size)
    head = build_classifier_head(backbone, strategy, n_outputs=len(experiment.task.outputs))
    network = Network(backbone, head, strategy)
    placed(network, device)
    probe = random_inputs(experiment.input, PROBE_BATCH, device)
    phase = compile_phases(strategy, backbone.n_stages)[-1]
    network.enter(phase)
    module: nn.Module = network
    inputs: Inputs | Prefix = probe
    if part.cut is not None:
        module = network.module_for(phase, part.cut)
        with torch.no_grad():
            inputs = backbone.prefix(probe, part.cut, network.pooling)
    network.train()

    def forward() -> None:
        with torch.inference_mode():
            network(probe)

    def step() -> None:
        module(inputs).float().square().mean().backward()

    process_bytes = resident_bytes(device)
    reset_peak_memory(device)
    forward_s = median_seconds(forward, device, times=PROBE_STEPS)
    train_s = forward_s
    if not phase.from_pooled:
        train_s = median_seconds(step, device, times=PROBE_STEPS)
    trained, _ = network.counts()
    gradients = 0 if phase.from_pooled else BYTES_PER_NUMBER * trained
    used = peak_memory_bytes(device) - process_bytes - gradients
    return StepCost(
        train_s=train_s / PROBE_BATCH,
        forward_s=forward_s / PROBE_BATCH,
        process_bytes=process_bytes,
        example_bytes=max(0, used) / PROBE_BATCH,
        trained=trained,
    )


def _measure_unknown(
    parts: Sequence[Part], costs: CostBook, *, probe: bool, progress: Progress
) -> None:
    for part in parts:
        if probe and costs.find(part) is None:
            experiment = part.experiment
            progress.say(
                f"measuring {experiment.strategy.strategy} {experiment.backbone.name} "
                f"at {size_text(experiment.input)}"
            )
            costs.measure(part)


def _block_plan(
    number: int,
    strategy: str,
    trials: int,
    parts: Sequence[Part],
    examples: Examples,
    costs: CostBook,
    needs: Sequence[TrialMemory],
) -> BlockPlan:
    known = [(part, cost) for part in parts if (cost := costs.find(part)) is not None]
    seconds = [_trial_seconds(part, examples, cost) for part, cost in known]
    complete = len(known) == len(parts)
    return BlockPlan(
        block=number,
        strategy=strategy,
        backbones=tuple(dict.fromkeys(part.experiment.backbone.name for part in parts)),
        trials=trials,
        seconds_each=sum(seconds) / len(seconds) if complete else None,
        peak_memory_bytes=max(need.bytes for need in needs) if complete else None,
        checkpoint_bytes_each=max(
            _checkpoint_bytes(part.experiment, costs.find(part)) for part in parts
        ),
    )


def _trial_seconds(part: Part, examples: Examples, cost: StepCost) -> float:
    """Forecast of one trial run to its end; reading features costs next to nothing."""
    total = START_UP_S
    for phase in phases_of(part.experiment):
        total += phase.epochs * (epoch_seconds(part, phase, examples, cost) or 0.0)
    return total


def epoch_seconds(
    part: Part, phase: Phase, examples: Examples, cost: StepCost | None
) -> float | None:
    """Forecast of one epoch of a phase, validation included; None where its cost is not known."""
    pieces, strategy = pieces_of(examples, part.experiment.input), part.experiment.strategy
    n_train, n_validation = len(pieces.indices("train")), len(pieces.indices("validation"))
    if phase.from_pooled:
        return n_train * FEATURE_ROW_S
    if cost is None:
        return None
    validation_s = n_validation * strategy.predict_views * cost.forward_s
    return n_train * cost.train_s + validation_s


def _memory_needs(parts: Sequence[Part], costs: CostBook, *, n_workers: int) -> list[TrialMemory]:
    """Of the trials whose costs are known, at their largest batches."""
    return [
        trial_memory(
            part.experiment,
            process=cost.process_bytes,
            trained=cost.trained,
            an_example=cost.example_bytes,
            n_workers=n_workers,
        )
        for part in parts
        if (cost := costs.find(part)) is not None
    ]


def _at_once(
    spec: SweepSpec, cluster: Cluster, needs: Sequence[TrialMemory], progress: Progress
) -> int:
    """Trials side by side: as many as CPUs, GPUs and main memory allow."""
    workers = spec.workers
    wanted = cluster.trials_at_once(workers)
    given = spec.budget.memory_gb
    room = cluster.node_memory_bytes if given is None else given * 1e9
    if room is None or workers.gpus:
        return wanted
    found = trials_that_fit(
        needs,
        at_once=wanted,
        room_bytes=room,
        n_nodes=cluster.nodes,
        n_workers=workers.fewest,
    )
    if found < wanted:
        neediest = max(needs, key=lambda need: need.bytes)
        progress.say(
            f"memory: {found} of {wanted} trials run at once, since {room / 1e9:.2f} GB a node "
            f"are to be had and {neediest}"
        )
    return found


def _checkpoint_bytes(experiment: Experiment, cost: StepCost | None) -> int:
    """Weights and two moments of what is trained; before that is known, of all that may be."""
    if cost is not None and cost.trained:
        return 3 * BYTES_PER_NUMBER * cost.trained
    facts = facts_of(experiment.backbone)
    trained = facts.feature_width * len(experiment.task.outputs)
    if experiment.strategy.strategy not in ("zero-shot", "feature-extraction"):
        trained += facts.n_parameters
    return 3 * BYTES_PER_NUMBER * trained


def _check_disk(
    spec: SweepSpec, blocks: Sequence[BlockPlan], at_once: int, progress: Progress
) -> None:
    """What trials write while they run must fit the disk; what all of them leave ought to.

    Raises:
        CapacityError: The disk has no room for those that run at once, as far as they are known.
    """
    free = free_bytes(spec.storage)
    known = [plan.checkpoint_bytes_each for plan in blocks if plan.seconds_each is not None]
    largest = max(known, default=0)
    running = at_once * CHECKPOINTS_AT_ONCE * largest
    if running > free:
        told = (
            f"trials write checkpoints of {largest / 1e9:.3g} GB, {CHECKPOINTS_AT_ONCE} at a time "
            f"for each of {at_once} that run at once: {running / 1e9:.3g} GB, and the disk has "
            f"{free / 1e9:.3g} GB left. Make room, name another storage, or unfreeze less"
        )
        raise CapacityError([Fault("storage", told)])
    left = sum(plan.trials * plan.checkpoint_bytes_each for plan in blocks)
    if left > free:
        progress.say(
            f"disk: checkpoints of all trials may take {left / 1e9:.3g} GB, and "
            f"{free / 1e9:.3g} GB are left"
        )


def actual_costs(
    folder: SweepFolder, records: Iterable[Record], *, seconds: float
) -> dict[str, float]:
    """What a sweep has cost so far, under the names of the forecast.

    Args:
        folder: The sweep's.
        records: Its ended trials.
        seconds: Wall time.
    """
    ended = list(records)
    return {
        "seconds": round(seconds, 1),
        "device_seconds": round(
            sum(r.seconds * (r.placement.workers if r.placement else 1) for r in ended), 1
        ),
        "peak_memory_bytes": max((r.peak_memory_bytes for r in ended), default=0),
        "checkpoint_bytes": sum(
            size
            for name, size in mirror.sizes(folder / "trials").items()
            if "/checkpoints/" in name
        ),
    }


def _row(work: Shared, costs: CostBook) -> dict[str, Any]:
    """A shared output as `plan.json` has it."""
    source = work.need.source
    forward_s = costs.forward_s(source.backbone.name, source.input.size)
    return {
        "what": str(work.need),
        "stored": work.stored,
        "trials": round(work.trials, 1),
        "images": work.images,
        "bytes": work.bytes,
        "forward_passes_saved": round(work.saved_passes * work.images) if work.stored else 0,
        "seconds_each": None if forward_s is None else round(forward_s * work.images, 1),
    }


def _forecast(
    spec: SweepSpec,
    blocks: Sequence[BlockPlan],
    shared: Sequence[Shared],
    costs: CostBook,
    at_once: int,
    pretrainings_s: float | None,
) -> dict[str, Any] | None:
    """What the whole sweep will cost; None when a cost is unknown.

    `seconds` are of wall time with all stages, `device_seconds` those of the trials alone.
    """
    if pretrainings_s is None or any(plan.seconds_each is None for plan in blocks):
        return None
    stored = [work for work in shared if work.stored]
    passes = {work.need.source: work.images for work in stored if not work.there}
    device_s = sum(plan.trials * (plan.seconds_each or 0.0) for plan in blocks)
    filling_s = sum(
        images * (costs.forward_s(source.backbone.name, source.input.size) or 0.0)
        for source, images in passes.items()
    )
    seconds = (device_s + filling_s) / max(1, at_once) + pretrainings_s
    limit_s = math.inf if spec.budget.minutes is None else spec.budget.minutes * 60
    return {
        "seconds": round(min(seconds, limit_s), 1),
        "device_seconds": round(device_s, 1),
        "peak_memory_bytes": max(plan.peak_memory_bytes or 0 for plan in blocks),
        "feature_bytes": sum(work.bytes for work in stored),
        "checkpoint_bytes": sum(plan.trials * plan.checkpoint_bytes_each for plan in blocks),
        "limited_by": "minutes" if seconds > limit_s else "trials",
    }
