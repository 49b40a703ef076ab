"""From a point of the search to the Experiment that it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from orchestrator.spec.backbones import facts_of
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, Contract, ObjectiveSpec, TaskSpec, TextContract
from orchestrator.spec.search_space import Block, Choice, Constant
from orchestrator.spec.strategy import Strategy
from orchestrator.spec.sweep import SweepSpec
from orchestrator.spec.vetted import with_defaults

RANDOM = "none"
_STRATEGY: TypeAdapter[Strategy] = TypeAdapter(Strategy)


@dataclass(frozen=True)
class ExperimentFactory:
    """Makes the experiments of one sweep.

    `weights_digests` maps each backbone of the search to the digest of its initial weights. From
    scratch the seed decides them, so the digest is `none`.
    """

    task: TaskSpec
    data_digest: str
    objective: ObjectiveSpec
    weights_digests: Mapping[BackboneSpec, str]

    def make(self, block: Block, values: Mapping[str, Any]) -> Experiment:
        """The experiment at one point of a block.

        Args:
            block: Whose strategy it is.
            values: A value for each of the block's dimensions.
        """
        params = {name: value for name, value in values.items() if name != "backbone"}
        backbone = BackboneSpec.model_validate(values["backbone"])
        return Experiment(
            task=self.task,
            data_digest=self.data_digest,
            backbone=backbone,
            weights_digest=(
                RANDOM if block.strategy == "scratch" else self.weights_digests[backbone]
            ),
            input=input_contract(backbone, params),
            strategy=_STRATEGY.validate_python(
                {
                    "strategy": block.strategy,
                    **with_defaults(block.strategy, block.modality, params),
                }
            ),
            objective=self.objective,
        )


def input_contract(backbone: BackboneSpec, params: Mapping[str, Any]) -> Contract:
    """The backbone's own input contract, with the size and crop that the parameters ask for."""
    native = facts_of(backbone).input
    wanted = {
        "size": params.get("max_length" if isinstance(native, TextContract) else "image_size"),
        "crop_fraction": params.get("crop_fraction"),
    }
    return native.model_copy(update={k: v for k, v in wanted.items() if v is not None})


def backbones_of(spec: SweepSpec) -> list[BackboneSpec]:
    """Every backbone that the search names, once, in order."""
    found: dict[BackboneSpec, None] = {}
    for block in spec.search:
        for value in block.dimensions["backbone"].extremes:
            found[BackboneSpec.model_validate(value)] = None
    return list(found)


def values_of(block: Block, name: str) -> list[Any]:
    """Every value that a listed dimension can take; the strategy's default when it has none."""
    dim = block.dimensions.get(name)
    if isinstance(dim, Constant | Choice):
        return dim.extremes
    if dim is None and name in block.params_class.model_fields:
        return [block.defaults()[name]]
    return []
