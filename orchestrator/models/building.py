"""From a BackboneSpec to a Backbone."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from orchestrator.errors import Fault, SpecError
from orchestrator.models.backbone import Backbone
from orchestrator.models.library_model import library_model, split_model
from orchestrator.models.text_backbone import build_text_backbone
from orchestrator.models.weights import load_weights
from orchestrator.spec.backbone_table import facts_for, library_of
from orchestrator.spec.backbones import backbone_modality, facts_of
from orchestrator.spec.clip_models import is_clip
from orchestrator.spec.parts import BackboneSpec


def build_backbone(spec: BackboneSpec, *, size: int | None = None, seed: int = 0) -> Backbone:
    """Builds a backbone with its weights, in eval mode, everything trainable.

    Weights are loaded at the native size; position embeddings are then resampled by timm.

    Args:
        spec: Name and weights.
        size: Pixels a side of the images to come, or tokens of the longest text; the backbone's
            own when None.
        seed: Of the initialisation of whatever the weights do not cover.

    Raises:
        SpecError: The backbone does not take images of this size.
        WeightsError: The weights cannot be had, or do not fit.
    """
    if is_clip(spec.name):
        from orchestrator.models.clip import build_clip_backbone  # seconds: it brings transformers

        return build_clip_backbone(spec, facts_of(spec), size=size, seed=seed)
    if backbone_modality(spec) == "text":
        return build_text_backbone(spec, facts_of(spec), size=size, seed=seed)
    facts = facts_for(spec.name)
    model = library_model(spec.name, seed=seed)
    load_weights(model, spec)
    if size is None or size == facts.input.size:
        return _assembled(model, spec, size=facts.input.size)
    try:
        _resize(model, size)
        return _assembled(model, spec, size=size)
    except (AssertionError, RuntimeError, ValueError) as err:  # what the libraries raise for sizes
        message = (
            f"{spec.name} does not take images of {size} pixels ({err}). "
            f"Use its own size, {facts.input.size}, or another backbone"
        )
        raise SpecError([Fault("image_size", message)]) from err


def _resize(model: Any, size: int) -> None:
    """Resamples position embeddings and the like; a convolutional network has nothing to do."""
    if hasattr(model, "set_input_size"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch about timm's interpolation
            model.set_input_size(img_size=size)


def _assembled(model: nn.Module, spec: BackboneSpec, *, size: int) -> Backbone:
    facts = facts_for(spec.name)
    return Backbone(
        split_model(model, library_of(spec.name)),
        spec=spec,
        contract=facts.input.model_copy(update={"size": size}),
        library=model,
    )
