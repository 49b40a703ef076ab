"""The facts of any backbone that a spec may name, known without importing torch."""

from __future__ import annotations

from orchestrator.spec.backbone_table import BackboneFacts, facts_for, is_image_backbone
from orchestrator.spec.clip_models import clip_facts, is_clip
from orchestrator.spec.parts import BackboneSpec, Modality
from orchestrator.spec.text_encoders import encoder_facts


def facts_of(spec: BackboneSpec) -> BackboneFacts:
    """The facts of one backbone: an image backbone's from the table, others' from their files.

    Raises:
        WeightsError: An encoder's or a CLIP's files cannot be had, or are of a kind that is not
            supported.
    """
    if is_clip(spec.name):
        return clip_facts(spec)
    return facts_for(spec.name) if backbone_modality(spec) == "image" else encoder_facts(spec)


def backbone_modality(spec: BackboneSpec) -> Modality:
    """What a backbone reads; of a CLIP its visual tower."""
    if is_clip(spec.name):
        return "image"
    return "image" if spec.folder is None and is_image_backbone(spec.name) else "text"
