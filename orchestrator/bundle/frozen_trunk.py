"""Which part of a model training left as it was, and the digest that says what it is."""

from __future__ import annotations

from orchestrator.bundle.manifest import Cut
from orchestrator.models.backbone import Backbone
from orchestrator.models.weights import prefix_digest
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import InputContract
from orchestrator.spec.strategy import FeatureExtraction, PartialTuning, ZeroShot
from orchestrator.spec.text_encoders import encoder_config


def frozen_cut(experiment: Experiment, backbone: Backbone) -> Cut | None:
    """Where the frozen part of a trained backbone ends; None where nothing that counts is frozen.

    A strategy that is not named here moves weights wherever it likes.
    """
    match experiment.strategy:
        case FeatureExtraction(pooling="none"):
            return backbone.n_stages  # what tokens are is all that follows needs, but for the mask
        case FeatureExtraction() | ZeroShot():
            return "features"
        case PartialTuning(unfreeze=unfreeze):
            return backbone.deepest_cut(unfreeze)
        case _:
            return None


def trunk_digest(experiment: Experiment, backbone: Backbone, cut: Cut) -> str:
    """Names a trunk: equal digests compute equal values from equal prepared inputs.

    Args:
        experiment: What was run.
        backbone: As trained.
        cut: From `frozen_cut`.
    """
    strategy, is_image = experiment.strategy, isinstance(experiment.input, InputContract)
    pooled_here = cut == "features" or strategy.pooling == "multi-scale"
    return digest_of(
        {
            "architecture": backbone.spec.name if is_image else encoder_config(experiment.backbone),
            "weights": prefix_digest(backbone, backbone.n_stages if cut == "features" else cut),
            "cut": cut,
            "pooling": strategy.pooling if pooled_here else None,
            "views": strategy.predict_views if is_image else 1,
            "input": experiment.input.to_json(),
        }
    )
