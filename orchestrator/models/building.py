"""From a BackboneSpec to a Backbone."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from orchestrator.errors import Fault, SpecError, nearest
from orchestrator.models.backbone import Backbone
from orchestrator.models.library_model import library_model, split_model
from orchestrator.models.weights import load_weights
from orchestrator.spec.backbone_table import backbone_names, facts_for
from orchestrator.spec.parts import BackboneSpec


def build_backbone(spec: BackboneSpec, *, image_size: int | None = None, seed: int = 0) -> Backbone:
    """Builds a backbone with its weights, in eval mode, everything trainable.

    Weights are loaded at the native size; position embeddings are then resampled by timm.

    Args:
        spec: Name and weights.
        image_size: Pixels a side of the images to come; the backbone's own when None.
        seed: Of the initialisation of whatever the weights do not cover.

    Raises:
        SpecError: No such backbone, or one that does not take images of this size.
        WeightsError: The weights cannot be had, or do not fit.
    """
    if spec.name not in set(backbone_names()):
        hint = nearest(spec.name, backbone_names())
        raise SpecError([Fault("backbone", f"no backbone is named {spec.name!r}.{hint}")])
    facts = facts_for(spec.name)
    model = library_model(spec.name, seed=seed)
    load_weights(model, spec)
    if image_size is None or image_size == facts.input.size:
        return _assembled(model, spec, image_size=facts.input.size)
    try:
        _resize(model, image_size)
        return _assembled(model, spec, image_size=image_size)
    except (AssertionError, RuntimeError, ValueError) as err:  # what the libraries raise for sizes
        message = (
            f"{spec.name} does not take images of {image_size} pixels ({err}). "
            f"Use its own size, {facts.input.size}, or another backbone"
        )
        raise SpecError([Fault("image_size", message)]) from err


def _resize(model: Any, image_size: int) -> None:
    """Resamples position embeddings and the like; a convolutional network has nothing to do."""
    if hasattr(model, "set_input_size"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch about timm's interpolation
            model.set_input_size(img_size=image_size)


def _assembled(model: nn.Module, spec: BackboneSpec, *, image_size: int) -> Backbone:
    facts = facts_for(spec.name)
    return Backbone(
        split_model(model, facts.library),
        spec=spec,
        contract=facts.input.model_copy(update={"size": image_size}),
        library=model,
    )
