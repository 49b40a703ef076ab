"""A model.onnx says what torch says in any batch size and length, or there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from orchestrator.bundle.onnx_export import OPSET, TOLERANCE, Exported, NotExported, export_onnx
from orchestrator.bundle.onnx_predictor import open_session, run_session
from orchestrator.features.network_inputs import network_inputs
from orchestrator.models.backbone import Backbone
from orchestrator.models.building import build_backbone
from orchestrator.models.classifier import Classifier, build_classifier_head
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.strategy import FeatureExtraction

SAMPLES = np.random.default_rng(0).integers(0, 256, (5, 3, 64, 64), np.uint8)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(BackboneSpec(name="resnet18", weights="none"), size=64, seed=3)


def classifier(backbone: Backbone, **params: Any) -> Classifier:
    strategy = FeatureExtraction(seed=7, **params)
    head = build_classifier_head(backbone, strategy, n_outputs=3)
    return Classifier(backbone, head, strategy).eval()


@pytest.mark.parametrize(
    "params",
    [{}, {"pooling": "multi-scale", "head": "mlp"}, {"predict_views": 4, "pooling": "mean"}],
)
def test_new_images_in_a_new_batch_size_have_torchs_outputs(
    backbone: Backbone, params: dict[str, Any]
) -> None:
    model = classifier(backbone, **params)
    exported = export_onnx(model, backbone.input, [SAMPLES])
    assert isinstance(exported, Exported)
    assert exported.report.max_difference <= exported.report.tolerance == TOLERANCE
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 64, 64), np.uint8)
    found = run_session(open_session(exported.model, threads=1), pixels)
    with torch.inference_mode():
        inputs = network_inputs(pixels, backbone.input, torch.device("cpu"))
        expected = model.outputs(inputs)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(found.features, expected.features, atol=1e-4)


def test_the_graph_takes_pixels_as_they_are_and_states_its_opset(backbone: Backbone) -> None:
    exported = export_onnx(classifier(backbone), backbone.input, [SAMPLES])
    assert isinstance(exported, Exported)
    model = onnx.load_model_from_string(exported.model)
    (pixels,) = model.graph.input
    kind = pixels.type.tensor_type
    assert (pixels.name, kind.elem_type) == ("pixels", onnx.TensorProto.UINT8)
    assert [d.dim_param or d.dim_value for d in kind.shape.dim] == ["n", 3, 64, 64]
    assert [entry.version for entry in model.opset_import if not entry.domain] == [OPSET]
    assert exported.report.opset == OPSET


def test_a_model_that_depends_on_its_batch_size_is_not_exported(backbone: Backbone) -> None:
    """A tracer keeps what it saw; one image alone is another case."""
    model = classifier(backbone)
    model.head.register_forward_hook(
        lambda module, inputs, output: output + (1.0 if len(output) == 1 else 0.0)
    )
    refused = export_onnx(model, backbone.input, [SAMPLES])
    assert isinstance(refused, NotExported)
    assert "differ from torch's by" in refused.reason


class _Unknown(nn.Module):
    """An operation that ONNX has not."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.special.bessel_j0(features[:, :3])


def test_a_model_without_an_onnx_form_says_so(backbone: Backbone) -> None:
    model = classifier(backbone)
    model.head = _Unknown()  # type: ignore[assignment]
    refused = export_onnx(model, backbone.input, [SAMPLES])
    assert isinstance(refused, NotExported)
    assert "it has no ONNX form" in refused.reason
    assert "\n" not in refused.reason


def test_a_model_that_answers_nan_does_not_agree(backbone: Backbone) -> None:
    model = classifier(backbone)
    with torch.no_grad():
        next(iter(model.head.parameters())).fill_(float("nan"))
    assert isinstance(export_onnx(model, backbone.input, [SAMPLES]), NotExported)


def test_equal_models_give_equal_bytes(backbone: Backbone) -> None:
    first, second = (export_onnx(classifier(backbone), backbone.input, [SAMPLES]) for _ in range(2))
    assert isinstance(first, Exported)
    assert isinstance(second, Exported)
    assert first.model == second.model
