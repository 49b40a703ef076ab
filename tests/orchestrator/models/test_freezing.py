"""A frozen stage stays bit-equal; a trainable one moves."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from orchestrator.models.backbone import Backbone, batch_norms
from orchestrator.models.building import build_backbone
from orchestrator.models.freezing import assert_frozen, last_stages, set_trainable
from orchestrator.models.library_model import library_model, split_model
from orchestrator.spec.backbone_table import LISTED, facts_for
from orchestrator.spec.parts import BackboneSpec

# A step of these takes seconds; their families are stepped at every depth by a small sibling.
LARGE = {
    "convnext_base": "convnext_atto",
    "vit_base_patch16_224": "vit_tiny_patch16_224",
    "torchvision/convnext_base": None,
    "torchvision/vit_b_16": None,
}
STEPPED = (*(n for n in LISTED if n not in LARGE), *(n for n in LARGE.values() if n))


def build(name: str) -> Backbone:
    return build_backbone(BackboneSpec(name=name, weights="none"), size=32)


@pytest.fixture(scope="module", params=STEPPED)
def small(request: pytest.FixtureRequest) -> Backbone:
    return build(request.param)


@pytest.fixture(scope="module", params=LARGE)
def large(request: pytest.FixtureRequest) -> Backbone:
    """On the meta device: modes and gradients need no memory."""
    name: str = request.param
    facts = facts_for(name)
    with torch.device("meta"):
        model = library_model(name, seed=0)
    spec = BackboneSpec(name=name, weights="none")
    split = split_model(model, facts.library)
    return Backbone(split, spec=spec, contract=facts.input, library=model)


def one_step(backbone: Backbone) -> None:
    """One real step of SGD with decay over everything that may move."""
    backbone.train()
    images = torch.randn(2, 3, backbone.input.size, backbone.input.size)
    features = backbone.features(images)
    moving = [p for p in backbone.parameters() if p.requires_grad]
    features.square().mean().backward()
    torch.optim.SGD(moving, lr=0.1, weight_decay=0.01).step()
    backbone.zero_grad(set_to_none=True)


def tensors_of(backbone: Backbone, stage: int) -> list[Tensor]:
    """Clones of all parameters and buffers of a stage."""
    modules = backbone.modules_of(stage)
    return [t.detach().clone() for m in modules for t in m.state_dict().values()]


def moved(before: list[Tensor], after: list[Tensor]) -> bool:
    return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def depths(backbone: Backbone) -> list[range]:
    """The last k stages for every k, and everything."""
    return [*(last_stages(backbone, k) for k in range(backbone.n_stages + 1)), everything(backbone)]


def everything(backbone: Backbone) -> range:
    return range(backbone.n_stages + 1)


def test_one_step_moves_exactly_the_trainable_stages_at_every_depth(small: Backbone) -> None:
    before = [tensors_of(small, stage) for stage in everything(small)]
    for stages in depths(small)[1:]:
        set_trainable(small, stages, batch_norm="adapt")
        one_step(small)
        assert_frozen(small)

        after = [tensors_of(small, stage) for stage in everything(small)]
        changed = {s for s in everything(small) if moved(before[s], after[s])}
        assert changed == set(stages)
        before = after


def test_exactly_the_last_stages_require_gradients_at_every_depth(large: Backbone) -> None:
    for stages in depths(large):
        set_trainable(large, stages)
        large.train()
        assert_frozen(large)

        for stage in everything(large):
            wanted = stage in stages
            assert all(p.requires_grad == wanted for p in large.parameters_of(stage))
            assert all(m.training == wanted for m in large.modules_of(stage))


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "densenet121", "resnet50_fpn"])
def test_batch_norm_frozen_keeps_statistics_but_trains_scale_and_shift(name: str) -> None:
    backbone = build(name)
    set_trainable(backbone, everything(backbone), batch_norm="frozen")
    statistics = {n: b.clone() for n, b in backbone.named_buffers() if "running" in n}
    scales = [n.weight.detach().clone() for n in batch_norms(backbone)]
    one_step(backbone)

    buffers = dict(backbone.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in statistics.items())
    assert moved(scales, [n.weight for n in batch_norms(backbone)])


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "torchvision/densenet121"])
def test_batch_norm_adapt_moves_the_statistics_of_trainable_stages_only(name: str) -> None:
    backbone = build(name)
    set_trainable(backbone, last_stages(backbone, 1), batch_norm="adapt")
    before = {n: b.clone() for n, b in backbone.named_buffers() if re.search("running", n)}
    one_step(backbone)

    after = dict(backbone.named_buffers())
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    last = (f"stages.{backbone.n_stages}.", "closing.")
    assert changed
    assert changed == {name for name in before if name.startswith(last)}


def test_dropout_is_active_in_trainable_stages_and_nowhere_else() -> None:
    backbone = build("vit_tiny_patch16_224")
    set_trainable(backbone, last_stages(backbone, 3))
    backbone.train()
    dropouts = [
        (stage, child.training)
        for stage in everything(backbone)
        for module in backbone.modules_of(stage)
        for child in module.modules()
        if isinstance(child, nn.Dropout)
    ]

    assert dropouts
    assert all(training == (stage in {10, 11, 12}) for stage, training in dropouts)


def test_eval_and_train_again_keep_what_is_frozen() -> None:
    backbone = build("mobilenetv3_small_100")
    set_trainable(backbone, last_stages(backbone, 2))
    for _ in range(2):
        backbone.eval()
        assert not any(module.training for module in backbone.modules())
        nn.Sequential(backbone).train()
        assert_frozen(backbone)


def test_a_copy_is_as_frozen_as_its_original() -> None:
    backbone = build("mobilenetv3_small_100")
    set_trainable(backbone, last_stages(backbone, 2))
    twin = copy.deepcopy(backbone)
    before = [tensors_of(backbone, stage) for stage in everything(backbone)]
    one_step(twin)
    assert_frozen(twin)

    after = [tensors_of(backbone, stage) for stage in everything(backbone)]
    assert not any(moved(a, b) for a, b in zip(before, after, strict=True))


def test_refreezing_drops_gradients() -> None:
    backbone = build("mobilenetv3_small_100")
    backbone.features(torch.randn(2, 3, 32, 32)).sum().backward()
    set_trainable(backbone, [])

    assert_frozen(backbone)


def test_assert_frozen_names_what_would_move() -> None:
    backbone = build("mobilenetv3_small_100")
    set_trainable(backbone, last_stages(backbone, 1))
    backbone.train()

    next(backbone.parameters_of(2)).requires_grad_(True)
    with pytest.raises(AssertionError, match="stage 2 requires a gradient"):
        assert_frozen(backbone)

    set_trainable(backbone, last_stages(backbone, 1))
    backbone.stages[0].train()
    with pytest.raises(AssertionError, match="stage 0 is in train mode"):
        assert_frozen(backbone)

    backbone.train()
    next(batch_norms(backbone.stages[6])).train()
    with pytest.raises(AssertionError, match="batch norms are in train mode"):
        assert_frozen(backbone)


def test_a_stage_that_does_not_exist_is_our_own_bug() -> None:
    backbone = build("mobilenetv3_small_100")
    assert facts_for("mobilenetv3_small_100").n_stages == 6

    with pytest.raises(AssertionError, match="0–6"):
        set_trainable(backbone, [7])
