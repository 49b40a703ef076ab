"""From a point of the search to the Experiment that it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from orchestrator.spec.backbones import facts_of
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import (
    BackboneSpec,
    Contract,
    ObjectiveSpec,
    TaskKind,
    TaskSpec,
    TextContract,
    by_position,
)
from orchestrator.spec.pretraining import PRETRAINING, Pretraining
from orchestrator.spec.search_space import Block, Choice, Constant
from orchestrator.spec.strategy import Strategy
from orchestrator.spec.sweep import SweepSpec
from orchestrator.spec.vetted import with_defaults

RANDOM = "none"
_STRATEGY: TypeAdapter[Strategy] = TypeAdapter(Strategy)


@dataclass(frozen=True)
class Adapted:
    """A backbone as experiments start from it: which weights, and the pretraining they are of."""

    backbone: BackboneSpec
    weights_digest: str
    digest: str | None = None


@dataclass(frozen=True)
class ExperimentFactory:
    """Makes the experiments of one sweep.

    `weights_digests` maps each backbone of the search to the digest of its initial weights. From
    scratch the seed decides them, so the digest is `none`. `adapted` says what each pretraining
    makes of a backbone.
    """

    task: TaskSpec
    data_digest: str
    objective: ObjectiveSpec
    weights_digests: Mapping[BackboneSpec, str]
    adapted: Mapping[tuple[BackboneSpec, Pretraining], Adapted] = field(default_factory=dict)

    def make(self, block: Block, values: Mapping[str, Any]) -> Experiment:
        """The experiment at one point of a block.

        Args:
            block: Whose strategy it is.
            values: A value for each of the block's dimensions.
        """
        params = {name: value for name, value in values.items() if name != "backbone"}
        named = BackboneSpec.model_validate(values["backbone"])
        start = self._start(block, named)
        then = {} if block.then is None else {"then": block.then}
        return Experiment(
            task=self.task,
            data_digest=self.data_digest,
            backbone=start.backbone,
            weights_digest=start.weights_digest,
            input=input_contract(named, params, self.task.kind),
            strategy=_STRATEGY.validate_python(
                {
                    "strategy": block.strategy,
                    **then,
                    **with_defaults(block.rung, block.modality, params),
                    **({"pooling": "none"} if by_position(self.task.kind) else {}),
                }
            ),
            objective=self.objective,
            parents={} if start.digest is None else {PRETRAINING: start.digest},
        )

    def _start(self, block: Block, backbone: BackboneSpec) -> Adapted:
        """The weights that a block's experiments start from."""
        if block.pretraining is not None:
            return self.adapted[backbone, block.pretraining]
        if block.strategy == "scratch":
            return Adapted(backbone, RANDOM)
        return Adapted(backbone, self.weights_digests[backbone])


def input_contract(backbone: BackboneSpec, params: Mapping[str, Any], task: TaskKind) -> Contract:
    """The backbone's own input contract, with the size and crop that the parameters ask for.

    Tasks that answer for every token see all of a long text, in windows.
    """
    native = facts_of(backbone).input
    wanted = {
        "size": params.get("max_length" if isinstance(native, TextContract) else "image_size"),
        "crop_fraction": params.get("crop_fraction"),
    }
    contract = native.model_copy(update={k: v for k, v in wanted.items() if v is not None})
    if not by_position(task):
        return contract
    overlap = params.get("overlap")
    overlap = contract.size // 4 if overlap is None else overlap
    return contract.model_copy(update={"overlap": overlap})


def backbones_of(spec: SweepSpec) -> list[BackboneSpec]:
    """Every backbone that the search names, once, in order."""
    return list(dict.fromkeys(b for block in spec.search for b in block_backbones(block)))


def block_backbones(block: Block) -> list[BackboneSpec]:
    """Every backbone that a block names, in order."""
    return [BackboneSpec.model_validate(v) for v in block.dimensions["backbone"].extremes]


def values_of(block: Block, name: str) -> list[Any]:
    """Every value that a listed dimension can take; the strategy's default when it has none."""
    dim = block.dimensions.get(name)
    if isinstance(dim, Constant | Choice):
        return dim.extremes
    if dim is None and name in block.params_class.model_fields:
        return [block.defaults()[name]]
    return []
