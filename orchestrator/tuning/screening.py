"""Rung zero: backbones are ranked on their stored features before any of them is fine-tuned.

Two measures that cost nothing more are ranked, and the mean of the two ranks orders the backbones:
the best score that a head of the bank reached on validation, and LogME on the training features.
`screen: {keep: n}` fine-tunes the n best. One of the others, drawn by the sweep's seed, gets a
trial in every block all the same: the audit by which the report tells what screening cost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from orchestrator.data.examples import Examples
from orchestrator.features.store import FeatureStore
from orchestrator.features.transferability import log_me
from orchestrator.runtime.folders import TrialStart
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.record import Record
from orchestrator.spec.search_space import Block, Choice
from orchestrator.spec.strategy import FineTuning
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tasks.losses import one_hot
from orchestrator.tuning.experiments import ExperimentFactory
from orchestrator.tuning.leaderboard import is_candidate
from orchestrator.tuning.stored_features import training_features

SCREEN = "screen"
MOST_ROWS = 5_000

Role = Literal["kept", "audit", "dropped"]


@dataclass(frozen=True)
class Screened:
    """One backbone's place in the screen.

    Attributes:
        backbone: Its name and weights.
        log_me: Of its features on the training examples; higher is better.
        bank: The best objective of a head on its features; None where none was trained.
        place: Mean of its ranks by the two, from 1; the lower the better.
        role: What becomes of it.
    """

    backbone: BackboneSpec
    log_me: float
    bank: float | None
    place: float
    role: Role

    def to_json(self) -> dict[str, Any]:
        """As `plan.json` has it."""
        return {**vars(self), "backbone": self.backbone.to_json()}


class Screen:
    """Which backbones a sweep fine-tunes; without rows all of them."""

    def __init__(self, rows: Sequence[Screened] = ()) -> None:
        self.rows = tuple(rows)

    @classmethod
    def of_plan(cls, plan: Mapping[str, Any]) -> Screen | None:
        """What an earlier run of the sweep decided, if it did."""
        if SCREEN not in plan:
            return None
        return cls(
            [
                Screened(**{**row, "backbone": BackboneSpec.model_validate(row["backbone"])})
                for row in plan[SCREEN]
            ]
        )

    def of_role(self, role: Role) -> list[BackboneSpec]:
        """The backbones of one role, best first."""
        return [row.backbone for row in self.rows if row.role == role]

    def to_json(self) -> list[dict[str, Any]]:
        """As `plan.json` has it, best first."""
        return [row.to_json() for row in self.rows]

    def narrowed(self, block: Block) -> Block | None:
        """A block with the backbones that were kept, best first; None where none of its were."""
        if not self.rows or not issubclass(block.params_class, FineTuning):
            return block
        mine = {BackboneSpec.model_validate(v): v for v in block.dimensions["backbone"].extremes}
        kept = [mine[backbone] for backbone in self.of_role("kept") if backbone in mine]
        if not kept:
            return None
        if len(mine) == 1:
            return block
        dimensions = {**block.dimensions, "backbone": Choice(values=tuple(kept))}
        return block.model_copy(update={"dimensions": dimensions})

    def audits(
        self, blocks: Sequence[Block], make: Callable[[Block, Mapping[str, Any]], Experiment]
    ) -> list[TrialStart]:
        """The audited backbone's trial in every block that has it: the block's vetted default.

        Args:
            blocks: Of the search.
            make: An experiment of a block from a value for each of its dimensions.
        """
        starts = []
        for block in blocks:
            if not issubclass(block.params_class, FineTuning):
                continue
            for value in block.dimensions["backbone"].extremes:
                if BackboneSpec.model_validate(value) in self.of_role("audit"):
                    values = {**block.vetted(), "backbone": value}
                    starts.append(
                        TrialStart(
                            experiment=make(block, values),
                            block=block.digest,
                            searched={name: values[name] for name in block.searched},
                            default=False,
                            attempt=1,
                        )
                    )
        return starts


def screen_backbones(
    spec: SweepSpec,
    factory: ExperimentFactory,
    heads: Iterable[Record],
    *,
    examples: Examples,
    store: FeatureStore,
) -> Screen:
    """Rank the backbones of the fine-tuning blocks.

    Args:
        spec: The sweep; its `screen` is given.
        factory: Makes its experiments.
        heads: Ended heads on stored features.
        examples: The data.
        store: Has the features.
    """
    assert spec.screen is not None
    candidates: dict[BackboneSpec, Experiment] = {}
    for block in spec.search:
        # A domain-adaptive block's twin stands for it: backbones are ranked as they come.
        if issubclass(block.params_class, FineTuning) and block.pretraining is None:
            for value in block.dimensions["backbone"].extremes:
                experiment = factory.make(block, {**block.vetted(), "backbone": value})
                candidates.setdefault(experiment.backbone, experiment)
    bank = _best_heads(heads, spec)
    evidence = [_log_me(experiment, examples, store) for experiment in candidates.values()]
    scores = [bank.get(backbone) for backbone in candidates]
    places = _places(evidence, scores, better_is_higher=spec.objective.mode == "max")
    order = sorted(range(len(places)), key=lambda i: (places[i], -evidence[i]))
    behind = order[spec.screen.keep :]
    audit = random.Random(f"{spec.seed}/audit").choice(behind) if behind else None
    backbones = list(candidates)
    return Screen(
        [
            Screened(
                backbone=backbones[i],
                log_me=evidence[i],
                bank=scores[i],
                place=places[i],
                role="kept" if i not in behind else "audit" if i == audit else "dropped",
            )
            for i in order
        ]
    )


def _places(
    evidence: Sequence[float], scores: Sequence[float | None], *, better_is_higher: bool
) -> list[float]:
    """Mean rank by both measures; by the first alone where the second is unknown."""
    by_evidence = rankdata([-value for value in evidence])
    known = [i for i, score in enumerate(scores) if score is not None]
    sign = -1 if better_is_higher else 1
    by_score = dict(zip(known, rankdata([sign * (scores[i] or 0.0) for i in known]), strict=True))
    return [
        float(np.mean([rank, by_score[i]])) if i in by_score else float(rank)
        for i, rank in enumerate(by_evidence)
    ]


def _best_heads(heads: Iterable[Record], spec: SweepSpec) -> dict[BackboneSpec, float]:
    best: dict[BackboneSpec, float] = {}
    for record in heads:
        if record.experiment.strategy.strategy != "feature-extraction" or not is_candidate(record):
            continue
        assert record.objective is not None
        backbone = record.experiment.backbone
        if spec.objective.better(record.objective, best.get(backbone)):
            best[backbone] = record.objective
    return best


def _log_me(experiment: Experiment, examples: Examples, store: FeatureStore) -> float:
    """LogME of the stored features of at most MOST_ROWS training examples, evenly drawn."""
    found = training_features(experiment, examples, store, most=MOST_ROWS)
    assert found is not None, f"no features of {experiment.backbone.name} are stored"
    rows, features = found
    targets = one_hot(examples.targets()[rows], experiment.task).double().numpy()
    return log_me(features, targets)
