"""A Backbone is the library's model, cut into stages, and nothing else."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from orchestrator.features.onnx_outputs import OnnxOutputs, agree
from orchestrator.models.backbone import Backbone, Output
from orchestrator.models.backbone_facts import library_features
from orchestrator.models.library_model import library_model, split_model
from orchestrator.spec.backbone_table import LISTED, facts_for
from orchestrator.spec.parts import BackboneSpec

SIZE = 48

# Small ones of families that are not listed, each with something of its own: channels last,
# rotary embedding, class attention, grouped stages.
OTHERS = (
    "mambaout_femto",
    "vit_small_patch16_dinov3",
    "xcit_nano_12_p16_224",
    "regnety_002",
    "deit_tiny_distilled_patch16_224",
)


class Case(NamedTuple):
    backbone: Backbone
    library: nn.Module
    images: Tensor


@pytest.fixture(scope="module", params=[*LISTED, *OTHERS])
def case(request: pytest.FixtureRequest) -> Case:
    """A backbone over random weights, the library's model that shares them, and two images."""
    name: str = request.param
    facts = facts_for(name)
    model = library_model(name, seed=1)
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=SIZE)
    if name == "torchvision/vit_b_16":  # has no other way to another size
        model = torchvision.models.vit_b_16(image_size=SIZE)
    backbone = Backbone(
        split_model(model, facts.library),
        spec=BackboneSpec(name=name, weights="none"),
        contract=facts.input.model_copy(update={"size": SIZE}),
        library=model,
    )
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return Case(backbone, model, images)


@torch.no_grad()
def test_features_are_what_the_librarys_classifier_sees(case: Case) -> None:
    expected = library_features(case.library)(case.images)

    torch.testing.assert_close(case.backbone.features(case.images), expected, rtol=0, atol=0)


@torch.no_grad()
def test_every_cut_rejoins_to_the_whole_and_leaves_cached_activations_alone(case: Case) -> None:
    backbone, images = case.backbone, case.images
    last, scales = backbone.features(images), backbone.features(images, "multi-scale")

    for cut in backbone.cuts:
        prefix = backbone.prefix(images, cut, "multi-scale")
        cached = prefix.activations.clone()

        from_cut = backbone.features_from(cached, cut, "multi-scale", prefix.pooled)
        assert torch.equal(backbone.pooled(backbone.forward_suffix(cached, cut)), last)
        assert torch.equal(from_cut, scales)
        assert torch.equal(cached, prefix.activations)


@torch.no_grad()
def test_one_pass_gives_every_output(case: Case) -> None:
    backbone, images = case.backbone, case.images
    wanted = ["multi-scale", *backbone.cuts[::2], "last"]

    scales, *activations, last = backbone.outputs(images, wanted)

    assert torch.equal(last, backbone.features(images))
    assert torch.equal(scales, backbone.features(images, "multi-scale"))
    for cut, found in zip(backbone.cuts[::2], activations, strict=True):
        assert torch.equal(found, backbone.forward_prefix(images, cut))
        assert found.shape[1:] == backbone.activation_shape(cut)
    (alone,) = backbone.outputs(images, [backbone.cuts[0]])
    assert torch.equal(alone, backbone.forward_prefix(images, backbone.cuts[0]))


@torch.no_grad()
def test_activations_stored_in_half_precision_give_features_and_logits_within_a_bound(
    case: Case,
) -> None:
    """fp16 keeps 11 bits: both move by at most 1 % of their own spread, features 0.2 % on average.

    The logits are those of heads at their first step, 1,000 of them on the same features.
    """
    backbone, images = case.backbone, case.images
    scales = backbone.features(images, "multi-scale")
    spread = float(scales.std())
    torch.manual_seed(0)
    head = nn.Linear(scales.shape[1], 1000, bias=False)
    logits = head(scales)

    for cut in backbone.cuts:
        prefix = backbone.prefix(images, cut, "multi-scale")
        stored = backbone.to_stored(prefix.activations).astype(np.float16)
        read = backbone.from_stored(stored, images.device)
        exact = backbone.from_stored(backbone.to_stored(prefix.activations), images.device)
        found = backbone.features_from(read, cut, "multi-scale", prefix.pooled)

        torch.testing.assert_close(exact, prefix.activations, rtol=0, atol=0)
        assert float((found - scales).abs().max()) < 0.01 * spread
        assert float((found - scales).abs().mean()) < 0.002 * spread
        assert float((head(found) - logits).abs().max()) < 0.01 * float(logits.std())


def test_the_share_of_the_arithmetic_grows_from_the_stem_to_all_of_it(case: Case) -> None:
    shares = [case.backbone.share_before(cut) for cut in case.backbone.cuts]

    assert all(0 < one <= other for one, other in itertools.pairwise(shares))
    assert shares[-1] == 1.0


@torch.no_grad()
def test_features_are_float32_of_the_width_that_is_announced(case: Case) -> None:
    facts = facts_for(case.backbone.spec.name)

    last = case.backbone.features(case.images)
    scales = case.backbone.features(case.images, "multi-scale")

    assert last.dtype == scales.dtype == torch.float32
    assert last.shape == (2, facts.feature_width)
    assert scales.shape == (2, facts.multi_scale_width)
    assert case.backbone.feature_width("last") == facts.feature_width
    assert case.backbone.feature_width("multi-scale") == facts.multi_scale_width


def test_every_parameter_of_the_library_but_its_classifier_is_in_exactly_one_stage(
    case: Case,
) -> None:
    backbone = case.backbone
    owned = [p for stage in range(backbone.n_stages + 1) for p in backbone.parameters_of(stage)]

    linear = [name for name, child in case.library.named_modules() if isinstance(child, nn.Linear)]
    classifier = linear[-1] if backbone.spec.name.startswith("torchvision/") else "none"
    library = {
        name for name, _ in case.library.named_parameters() if name.rpartition(".")[0] != classifier
    }
    parameters = {backbone.library_names[name] for name, _ in backbone.named_parameters()}

    assert len({id(p) for p in owned}) == len(owned)
    assert parameters == library


def test_the_stages_are_as_many_as_the_table_says(case: Case) -> None:
    facts = facts_for(case.backbone.spec.name)

    assert case.backbone.n_stages == facts.n_stages == len(case.backbone.widths) - 1


@torch.no_grad()
def test_multi_scale_is_mean_and_max_over_the_positions_of_every_stage() -> None:
    backbone = _backbone("mobilenetv3_small_100")
    images = torch.randn(2, 3, 64, 64)
    expected = []
    x = backbone.stages[0](images)
    for stage in backbone.stages[1:]:
        x = stage(x)
        expected += [x.mean((2, 3)), x.amax((2, 3))]

    torch.testing.assert_close(backbone.features(images, "multi-scale"), torch.cat(expected, 1))


@torch.no_grad()
def test_multi_scale_of_a_transformer_leaves_the_class_token_out() -> None:
    backbone = _backbone("vit_tiny_patch16_224", size=224)
    activations = torch.zeros(1, 197, 192)
    activations[:, 0] = 5.0

    assert backbone._pool_stage(activations).abs().max() == 0


def test_the_deepest_cut_lies_below_everything_that_trains() -> None:
    chain = _backbone("mobilenetv3_small_100")
    pyramid = _backbone("resnet50_fpn")

    assert [chain.deepest_cut(k) for k in range(8)] == [6, 5, 4, 3, 2, 1, 0, None]
    assert [pyramid.deepest_cut(k) for k in range(7)] == [5, 1, 1, 1, 1, 0, None]


def test_a_pyramid_refuses_a_cut_where_several_maps_are_alive() -> None:
    with pytest.raises(AssertionError, match="no cut at 3"):
        _backbone("resnet50_fpn").forward_prefix(torch.zeros(1, 3, 64, 64), 3)


def test_multi_scale_from_a_cut_needs_the_pooled_columns_before_it() -> None:
    backbone = _backbone("mobilenetv3_small_100")
    activations = torch.zeros(1, backbone.widths[2], 8, 8)

    with pytest.raises(AssertionError, match="pooled columns of earlier stages"):
        backbone.features_from(activations, 2, "multi-scale")


def _backbone(name: str, size: int = 64) -> Backbone:
    model = library_model(name, seed=0)
    facts = facts_for(name)
    return Backbone(
        split_model(model, facts.library),
        spec=BackboneSpec(name=name, weights="none"),
        contract=facts.input.model_copy(update={"size": size}),
        library=model,
    )


def test_through_onnx_runtime_every_output_is_the_same_within_the_bound(case: Case) -> None:
    backbone, images = case.backbone.eval(), case.images
    wanted: list[Output] = ["last", "multi-scale", *backbone.cuts]
    with torch.inference_mode():
        expected = backbone.outputs(images, wanted)
    session = OnnxOutputs(backbone, wanted, images, threads=1)
    assert agree(session(images), expected)
    assert agree(session(images[:1]), [output[:1] for output in expected])
