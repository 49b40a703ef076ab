"""What the trials of a sweep share: outputs of frozen stages, computed once and stored.

Every stored output is a node of the sweep's graph: some trials read it in every epoch. Features are
always stored: they are small. Activations at a cut are stored where there is room, those first
that save the most time a byte; a trial whose activations are not stored runs the frozen stages
itself, with the same outcome up to the rounding of the stored precision.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import CapacityError, Fault
from orchestrator.features.room import entries
from orchestrator.features.store import FeatureStore
from orchestrator.runtime.feature_filling import FeatureNeed, Pass
from orchestrator.runtime.process_cache import CutFacts, cut_facts
from orchestrator.spec import mirror
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import Contract
from orchestrator.spec.search_space import Block, Range
from orchestrator.spec.strategy import Augment, ZeroShot
from orchestrator.spec.sweep import SweepSpec
from orchestrator.training.phases import Phase, compile_phases
from orchestrator.tuning.experiments import ExperimentFactory, values_of
from orchestrator.tuning.suggestions import block_size

BYTES = {"fp32": 4, "fp16": 2}
PLAIN: tuple[int, Augment] = (0, "none")  # the view of an image that a head's statistics come from
SHAPING = (
    "backbone",
    "image_size",
    "crop_fraction",
    "max_length",
    "overlap",
    "pooling",
    "views",
    "predict_views",
    "unfreeze",
    "adapter",
    "augment",
    "stored_precision",
)


@dataclass(frozen=True)
class Shared:
    """One stored output and what reads it.

    Attributes:
        need: The output.
        images: Rows of the entry.
        bytes: Of the entry.
        trials: Expected number of trials that read it.
        passes: Forward passes over the images that these trials would make without it.
        share: Of the arithmetic of a whole forward pass that one of them would be.
        stored: Whether there is room for it.
        there: Whether an earlier sweep has stored it.
    """

    need: FeatureNeed
    images: int
    bytes: int
    trials: float
    passes: float
    share: float
    stored: bool = True
    there: bool = False

    @property
    def saved_passes(self) -> float:
        """Whole forward passes over the images that storing it saves."""
        return max(0.0, self.passes - 1) * self.share

    @property
    def group(self) -> tuple[Any, ...]:
        """What must be stored together to be of use: all views of one output."""
        source = self.need.source
        return (source.backbone, source.input, self.need.output, self.need.precision)


def shared_work(
    spec: SweepSpec,
    factory: ExperimentFactory,
    *,
    images: Callable[[Contract], int],
    forward_s: Callable[[str, int], float | None],
    room: Callable[[Collection[FeatureNeed]], float],
) -> list[Shared]:
    """All outputs that trials of the search could share, and which of them are stored.

    Args:
        spec: The sweep.
        factory: Makes its experiments.
        images: Training and validation inputs under a contract.
        forward_s: Seconds an input of a backbone's forward pass at a size, where they are known.
        room: Bytes that the store may take for what could be stored.

    Raises:
        CapacityError: Not even the features have room.
    """
    found: dict[FeatureNeed, Shared] = {}
    for block, share in zip(spec.search, block_shares(spec), strict=True):
        corners = corner_experiments(block, factory)
        for experiment in corners:
            n_inputs = images(experiment.input)
            for use in _uses(experiment, n_inputs):
                trials = share / len(corners)
                old = found.get(use.need)
                found[use.need] = Shared(
                    need=use.need,
                    images=n_inputs,
                    bytes=use.bytes,
                    trials=trials + (old.trials if old else 0),
                    passes=trials * use.passes + (old.passes if old else 0),
                    share=use.share,
                )
    return _within(list(found.values()), room(found.keys()), forward_s)


def store_budget(spec: SweepSpec, store: FeatureStore) -> float:
    """Bytes that the store may take: `budget.store_gb`, or half of the disk that is not others'.

    At a URI this bounds what the driver's node has of it.
    """
    if spec.budget.store_gb is not None:
        return spec.budget.store_gb * 1e9
    held = sum(entry.bytes for entry in entries(store))
    return (free_bytes(spec.storage) + held) / 2


def free_bytes(storage: str) -> int:
    """Of the disk that holds a storage; at a URI, of the disk with this node's mirror of it."""
    root = mirror.local_path(storage)
    while not root.exists():
        root = root.parent
    return shutil.disk_usage(root).free


def corner_experiments(
    block: Block, factory: ExperimentFactory, names: Sequence[str] = SHAPING
) -> list[Experiment]:
    """One experiment for each combination of the values, or extremes, of some dimensions.

    Args:
        block: Of the search.
        factory: Makes the experiments.
        names: The dimensions; by default those that decide what is computed.
    """
    present = [name for name in names if name in block.dimensions]
    lists = [_corners(block, name) for name in present]
    return [
        factory.make(block, {**block.vetted(), **dict(zip(present, values, strict=True))})
        for values in itertools.product(*lists)
    ]


def phases_of(experiment: Experiment) -> tuple[Phase, ...]:
    """The phases of an experiment, without building its backbone."""
    n_stages = facts_of(experiment.backbone).n_stages
    return compile_phases(experiment.strategy, n_stages)


def pooled_width(experiment: Experiment) -> int:
    """Columns of the features that an experiment's head reads."""
    facts = facts_of(experiment.backbone)
    multi_scale = experiment.strategy.pooling == "multi-scale"
    return facts.multi_scale_width if multi_scale else facts.feature_width


def frozen_cut(experiment: Experiment, phase: Phase) -> CutFacts | None:
    """The cut whose stored activations a phase can start from: a head on positions, too."""
    if not phase.same_inputs or phase.from_pooled:
        return None
    return cut_facts(experiment.backbone, experiment.input.size, len(phase.stage_lrs))


def stored_cut_of(experiment: Experiment, stored: Collection[FeatureNeed]) -> int | None:
    """The cut at which an experiment's fine-tuning starts, given what is stored."""
    cut = frozen_cut(experiment, phases_of(experiment)[-1])
    if cut is None:
        return None
    needed = [use.need for use in _uses(experiment, 1) if use.need.output == cut.cut]
    return cut.cut if all(need in stored for need in needed) else None


def _uses(experiment: Experiment, images: int) -> list[Shared]:
    """What one trial of an experiment reads, and how often."""
    strategy = experiment.strategy
    if strategy.strategy == "scratch":
        return []
    phases = phases_of(experiment)
    pools = strategy.pooling != "none"
    width = pooled_width(experiment) if pools else 0
    head_epochs = sum(phase.epochs for phase in phases if phase.from_pooled)
    if isinstance(strategy, ZeroShot):
        head_epochs = 1  # it reads what a head's epoch does, and trains nothing
    tuned = [(phase, cut) for phase in phases if (cut := frozen_cut(experiment, phase))]
    fixed: list[Augment] = [phase.augment for phase in phases if phase.same_inputs]
    views = (
        strategy.stored_views(fixed[0] if fixed else "none") if head_epochs or tuned else [PLAIN]
    )
    uses = []
    for view in views:
        source = Pass(experiment.backbone, experiment.weights_digest, experiment.input, *view)
        if pools:
            uses.append(
                Shared(
                    need=FeatureNeed(source, strategy.pooling),
                    images=images,
                    bytes=images * width * BYTES["fp32"],
                    trials=1,
                    passes=head_epochs / len(views),
                    share=1.0,
                )
            )
        uses += [
            Shared(
                need=FeatureNeed(source, cut.cut, strategy.stored_precision),
                images=images,
                bytes=images * math.prod(cut.shape) * BYTES[strategy.stored_precision],
                trials=1,
                passes=phase.epochs / len(views),
                share=cut.share,
            )
            for phase, cut in tuned
        ]
    return uses


def _within(
    found: Sequence[Shared], budget_bytes: float, forward_s: Callable[[str, int], float | None]
) -> list[Shared]:
    """Mark what is stored: all features, then activations by time saved a byte.

    While the time of one backbone is not known, passes of all count alike.
    """
    features = [work for work in found if isinstance(work.need.output, str)]
    left = budget_bytes - sum(work.bytes for work in features)
    if left < 0:
        needed = budget_bytes - left
        raise CapacityError(
            [
                Fault(
                    "budget.store_gb",
                    f"the features alone need {needed / 1e9:.3g} GB of the "
                    f"{budget_bytes / 1e9:.3g} GB that the store may take. Give it more, or use "
                    "fewer backbones, image sizes or views",
                )
            ]
        )
    groups: dict[tuple[Any, ...], list[Shared]] = {}
    for work in found:
        if not isinstance(work.need.output, str):
            groups.setdefault(work.group, []).append(work)
    kept: set[FeatureNeed] = {work.need for work in features}
    sources = [group[0].need.source for group in groups.values()]
    times = [forward_s(source.backbone.name, source.input.size) for source in sources]
    known = [1.0 if None in times or time is None else time for time in times]
    ordered = sorted(
        zip(known, groups.values(), strict=True),
        key=lambda timed: timed[0] * _saved_a_byte(timed[1]),
        reverse=True,
    )
    for _, group in ordered:
        size = sum(work.bytes for work in group)
        if size <= left and sum(work.saved_passes for work in group) > 0:
            left -= size
            kept.update(work.need for work in group)
    return [replace(work, stored=work.need in kept) for work in found]


def _saved_a_byte(group: Sequence[Shared]) -> float:
    """Forward passes of an input that storing the group saves, for each of its bytes."""
    return sum(work.saved_passes * work.images for work in group) / sum(
        work.bytes for work in group
    )


def _corners(block: Block, name: str) -> list[Any]:
    dim = block.dimensions[name]
    if name == "unfreeze" and isinstance(dim, Range):
        return list(range(int(dim.low), int(dim.high) + 1))
    return values_of(block, name) or dim.extremes


def block_shares(spec: SweepSpec) -> list[int]:
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
