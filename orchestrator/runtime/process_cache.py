"""What one process keeps between trials: the mapped data set and a pristine backbone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from orchestrator.data.examples import INDEX, Examples
from orchestrator.errors import IntegrityError
from orchestrator.models.backbone import Backbone
from orchestrator.models.building import build_backbone
from orchestrator.models.weights import tensors_digest
from orchestrator.spec import mirror
from orchestrator.spec.parts import BackboneSpec


@lru_cache(maxsize=4)
def open_examples(folder: Path) -> Examples:
    """The data set below `folder`, mapped once a process."""
    return Examples.open(mirror.fetch_folder(folder, last=INDEX))


def pristine_backbone(
    spec: BackboneSpec, *, size: int, expected_digest: str, seed: int
) -> Backbone:
    """A backbone with its initial weights that nobody may change; the last one is kept.

    Args:
        spec: Name and weights.
        size: Of the input: pixels a side, or tokens.
        expected_digest: The weights digest that the plan found; `none` when `seed` decides.
        seed: Of the weights of a backbone from scratch; others are initialised from 0.

    Raises:
        IntegrityError: The weights are not those that were planned with.
    """
    from_scratch = expected_digest == "none"
    backbone, digest = _built(spec, size, seed if from_scratch else 0)
    if not from_scratch and digest != expected_digest:
        raise IntegrityError(
            f"the weights of {spec.name} ({spec.weights}) have changed since the sweep was "
            "planned. Restore the file, or start another sweep with --fresh"
        )
    return backbone


def initial_weights_digest(spec: BackboneSpec, *, size: int) -> str:
    """The digest of the weights that `spec` names now; random ones are those of seed 0."""
    return _built(spec, size, 0)[1]


@dataclass(frozen=True)
class CutFacts:
    """A cut below the stages that train.

    Attributes:
        cut: The stage after which stored activations enter.
        shape: Of one input's activations.
        share: Of the multiply-adds of a forward pass that come before the cut.
    """

    cut: int
    shape: tuple[int, ...]
    share: float


@lru_cache(maxsize=256)
def cut_facts(spec: BackboneSpec, size: int, n_trainable: int) -> CutFacts | None:
    """The deepest cut below the last `n_trainable` stages, or None if the stem trains as well."""
    backbone = _random_backbone(spec, size)
    cut = backbone.deepest_cut(n_trainable)
    if cut is None:
        return None
    return CutFacts(cut, backbone.activation_shape(cut), backbone.share_before(cut))


@lru_cache(maxsize=1)
def _random_backbone(spec: BackboneSpec, size: int) -> Backbone:
    return build_backbone(spec.model_copy(update={"weights": "none"}), size=size)


@lru_cache(maxsize=1)
def _built(spec: BackboneSpec, size: int, seed: int) -> tuple[Backbone, str]:
    backbone = build_backbone(spec, size=size, seed=seed)
    return backbone, tensors_digest(backbone)
