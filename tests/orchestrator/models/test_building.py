"""From a spec to a backbone of the size that is wanted."""

from __future__ import annotations

import pytest
import torch

from orchestrator.errors import SpecError, WeightsError
from orchestrator.models.building import build_backbone
from orchestrator.models.weights import tensors_digest
from orchestrator.spec.parts import BackboneSpec


def spec(name: str) -> BackboneSpec:
    return BackboneSpec(name=name, weights="none")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenetv3_small_100", 96),
        ("vit_tiny_patch16_224", 64),
        ("swin_tiny_patch4_window7_224", 128),
        ("torchvision/resnet50", 96),
        ("vit_small_patch16_dinov3", 64),
    ],
)
@torch.no_grad()
def test_a_backbone_takes_another_image_size_where_its_architecture_allows(
    name: str, size: int
) -> None:
    backbone = build_backbone(spec(name), size=size)

    assert backbone.input.size == size
    assert backbone.features(torch.zeros(1, 3, size, size)).shape == (1, backbone.feature_width())


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("torchvision/vit_b_16", 160),
        ("mixer_s32_224", 160),
    ],
)
def test_a_size_that_does_not_fit_is_a_fault_of_the_spec(name: str, size: int) -> None:
    with pytest.raises(SpecError, match=f"image_size: {name} does not take images of {size}"):
        build_backbone(spec(name), size=size)


def test_a_name_that_is_in_no_table_is_looked_for_on_the_hub() -> None:
    with pytest.raises(WeightsError, match="resnet5o: cannot be had from the hub"):
        build_backbone(spec("resnet5o"))


def test_a_new_backbone_is_in_eval_mode_with_everything_trainable() -> None:
    backbone = build_backbone(spec("mobilenetv3_small_100"), size=64)

    assert not any(module.training for module in backbone.modules())
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_the_seed_alone_decides_random_weights() -> None:
    torch.manual_seed(1)
    first = build_backbone(spec("mobilenetv3_small_100"), size=64, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build_backbone(spec("mobilenetv3_small_100"), size=64, seed=3)
    other = build_backbone(spec("mobilenetv3_small_100"), size=64, seed=4)

    assert tensors_digest(first) == tensors_digest(second) != tensors_digest(other)
    assert torch.equal(torch.get_rng_state(), state)
