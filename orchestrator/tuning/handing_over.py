"""Hand-over: the best head of a sweep's banks is phase 1 of its fine-tuning trials.

Fine-tuning that starts from a trained head distorts the pretrained features less (LP-FT: Kumar et
al., ICLR 2022), and one head serves every trial that can take it: same backbone, input and
features, same shape, same loss and class weights. Which head that is, is decided once, before the
first of them starts, and named in `plan.json`: a child's Experiment names its parent, so a better
head that comes later changes nobody.

The two trials that show what a pretraining brings start on equal terms: each from the head that its
own warm-up gives, whatever banks the sweep has of either backbone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from orchestrator.runtime.folders import SweepFolder
from orchestrator.spec.experiment import HEAD, Experiment
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.record import Record
from orchestrator.spec.search_space import Block
from orchestrator.spec.strategy import FeatureExtraction, FineTuning, StrategyParams
from orchestrator.training.phases import WARM_UP, warm_up_augment
from orchestrator.tuning.experiments import ExperimentFactory
from orchestrator.tuning.leaderboard import is_candidate
from orchestrator.tuning.screening import SCREEN
from orchestrator.tuning.sharing import corner_experiments

SHAPING = (
    "backbone",
    "image_size",
    "crop_fraction",
    "max_length",
    "overlap",
    "pooling",
    "head",
    "templates",
    "hidden",
    "loss",
    "focal_gamma",
    "class_weights",
    "warm_up",
    "warm_up_epochs",
)
PLAN = "plan.json"
HEADS = "heads"


@dataclass(frozen=True)
class NamedHead:
    """A head that fine-tuning trials start from.

    Attributes:
        key: What a child must share with it (`head_key`), or whose warm-up it is (`own_key`).
        backbone: Whose features it reads.
        trial: Its trial, or the head trained for this purpose alone.
        digest: Of its Experiment.
    """

    key: str
    backbone: str
    trial: str
    digest: str


class HandOver:
    """Which head each fine-tuning experiment starts from."""

    def __init__(self, heads: Iterable[NamedHead] = ()) -> None:
        self._heads = {head.key: head for head in heads}

    @classmethod
    def of_plan(cls, folder: SweepFolder) -> HandOver:
        """What the sweep's plan names, as far as these heads are still there."""
        named = [NamedHead(**row) for row in (folder.read(PLAN) or {}).get(HEADS, [])]
        return cls(head for head in named if _is_there(folder, head))

    def lacking(self, blocks: Sequence[Block], factory: ExperimentFactory) -> dict[str, Experiment]:
        """What the search asks for and has no name yet: by key, the warm-up that would do."""
        found: dict[str, Experiment] = {}
        for block in blocks:
            for experiment in corner_experiments(block, factory, SHAPING):
                if wants_head(experiment):
                    found.setdefault(head_key(experiment), warm_up_head(experiment))
            if shows_pretraining(block):
                compared = factory.make(block, block.vetted())
                if wants_head(compared):
                    found[own_key(compared)] = warm_up_head(compared)
        return {key: head for key, head in found.items() if key not in self._heads}

    def name_best(self, records: Iterable[Record], keys: Set[str]) -> None:
        """Name the best of some heads for each of some keys."""
        best: dict[str, Record] = {}
        for record in records:
            experiment = record.experiment
            is_head = experiment.strategy.strategy == "feature-extraction"
            if not is_head or not is_candidate(record):
                continue
            assert record.objective is not None
            better = experiment.objective.better
            for key in keys & {head_key(experiment), _digest_key(experiment)}:
                if key not in best or better(record.objective, best[key].objective):
                    best[key] = record
        for key, record in best.items():
            experiment = record.experiment
            name = experiment.backbone.name
            self._heads[key] = NamedHead(key, name, record.trial, experiment.digest)

    def child(self, block: Block, experiment: Experiment, *, default: bool) -> Experiment:
        """The experiment with its parent; as it is where it has a warm-up of its own, or none.

        Args:
            block: Whose experiment it is.
            experiment: As the block makes it.
            default: Whether it is the block's vetted default.
        """
        if not wants_head(experiment):
            return experiment
        compared = default and shows_pretraining(block)
        head = self._heads.get(own_key(experiment) if compared else head_key(experiment))
        if head is None:
            return experiment
        parents = {**experiment.parents, HEAD: head.digest}
        return experiment.model_copy(update={"parents": parents})

    @property
    def heads(self) -> list[NamedHead]:
        """All that are named."""
        return list(self._heads.values())

    def to_json(self) -> list[dict[str, Any]]:
        """As `plan.json` names them."""
        return [vars(head) for head in self.heads]


def wants_head(experiment: Experiment) -> bool:
    """Whether an experiment can start from a head of the bank."""
    strategy = experiment.strategy
    return (
        isinstance(strategy, FineTuning)
        and strategy.warm_up == "bank"
        and strategy.warm_up_epochs > 0
    )


def shows_pretraining(block: Block) -> bool:
    """Whether the block's default is compared with another that differs in its pretraining."""
    return block.pretraining is not None or bool(block.twin_of)


def own_key(experiment: Experiment) -> str:
    """Of the one head that is a fine-tuning experiment's own warm-up."""
    return _digest_key(warm_up_head(experiment))


def _digest_key(head: Experiment) -> str:
    return head.digest[:16]


def head_key(experiment: Experiment) -> str:
    """Equal where one experiment's head is a warm start for the other."""
    strategy = experiment.strategy
    return digest_of(
        {
            "backbone": experiment.backbone.name,
            "weights": experiment.weights_digest,
            "input": experiment.input.to_json(),
            "pooling": strategy.pooling,
            "hidden": strategy.hidden if strategy.head == "mlp" else None,
            "texts": _texts(strategy) if strategy.head == "text" else None,
            "focal": strategy.focal_gamma if strategy.loss == "focal" else None,
            "class_weights": strategy.class_weights,
        }
    )[:16]


def _texts(strategy: StrategyParams) -> dict[str, Any]:
    content = strategy.to_json()
    return {name: content[name] for name in ("templates", "descriptions")}


def warm_up_head(experiment: Experiment) -> Experiment:
    """A fine-tuning experiment's warm-up as an experiment of its own."""
    strategy = experiment.strategy
    assert isinstance(strategy, FineTuning)
    alike = FeatureExtraction.model_fields.keys() & type(strategy).model_fields.keys()
    head = FeatureExtraction.model_validate(
        {
            **{name: getattr(strategy, name) for name in alike - {"strategy"}},
            **WARM_UP,
            "augment": warm_up_augment(strategy),
            "epochs": strategy.warm_up_epochs,
            "head_lr": strategy.warm_up_lr,
            "accumulate": 1,
        }
    )
    return experiment.model_copy(update={"strategy": head})


def planned(folder: SweepFolder, plan: Mapping[str, Any]) -> dict[str, Any]:
    """A new plan with what an earlier run of the sweep decided: the heads, and the screen."""
    decided = folder.read(PLAN) or {}
    return {**plan, **{name: decided[name] for name in (HEADS, SCREEN) if name in decided}}


def _is_there(folder: SweepFolder, head: NamedHead) -> bool:
    record = folder.parent(head.trial).record()
    return record is not None and record.experiment.digest == head.digest and is_candidate(record)
