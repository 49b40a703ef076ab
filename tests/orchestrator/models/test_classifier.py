"""A Classifier answers with the mean over its views, once it has stopped training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.data.transforms import dihedral
from orchestrator.models.building import build_backbone
from orchestrator.models.classifier import Classifier, build_classifier_head, turned
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.strategy import FeatureExtraction


@pytest.mark.parametrize("view", range(8))
def test_tensors_are_turned_as_pixels_are(view: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 5), np.uint8)
    assert np.array_equal(turned(torch.from_numpy(pixels), view), dihedral(pixels, view))


@pytest.mark.parametrize("n_views", [1, 4, 8])
def test_logits_are_the_mean_over_the_views(n_views: int) -> None:
    backbone = build_backbone(BackboneSpec(name="mobilenetv3_small_050", weights="none"), size=32)
    params = FeatureExtraction(predict_views=n_views)
    head = build_classifier_head(backbone, params, n_outputs=3)
    classifier = Classifier(backbone, head, params).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        alone = [head(backbone.features(turned(images, view))) for view in range(n_views)]
        torch.testing.assert_close(classifier(images), torch.stack(alone).mean(0))
        assert len({logits.sum().item() for logits in alone}) == n_views
        backbone.eval()
        classifier.training = True  # as in training, without its statistics
        torch.testing.assert_close(classifier(images), alone[0])
