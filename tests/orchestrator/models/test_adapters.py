"""Adapters start as nothing, are all that trains, and end as plain weights, in every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.models.adapters import (
    add_adapters,
    merge_adapters,
    projections,
    takes_adapters,
)
from orchestrator.models.backbone import Backbone, is_adapter
from orchestrator.models.building import build_backbone
from orchestrator.models.freezing import assert_frozen, last_stages, set_trainable
from orchestrator.models.weights import tensors_digest
from orchestrator.spec.backbone_table import facts_for
from orchestrator.spec.parts import BackboneSpec
from tests.orchestrator.models.test_text_backbone import CONFIGS, some_tokens, written

IMAGES = ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
FAMILIES = [*CONFIGS, *IMAGES]


class Case:
    """A small backbone of a family, and inputs for it."""

    def __init__(self, family: str, folder: Path) -> None:
        self.inputs: Any = some_tokens()
        self.pooling: Any = "mean"
        if family in CONFIGS:
            self.backbone = build_backbone(written(folder / family, family))
            return
        self.backbone = build_backbone(BackboneSpec(name=family, weights="none"))
        size = self.backbone.input.size
        self.inputs = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        self.pooling = "last"

    def features(self) -> Tensor:
        with torch.inference_mode():
            return self.backbone.eval().features(self.inputs, self.pooling)

    def adapted(self, unfreeze: int = 1, **changes: Any) -> Backbone:
        settings = {"rank": 2, "alpha": 4, "dropout": 0.0, "seed": 3} | changes
        add_adapters(self.backbone, last_stages(self.backbone, unfreeze), **settings)
        return self.backbone


@pytest.fixture
def case_of(tmp_path: Path) -> Callable[[str], Case]:
    return lambda family: Case(family, tmp_path)


def trained(case: Case, unfreeze: int = 1) -> dict[str, Tensor]:
    """Adapters after a few steps; the tensors as they were before them."""
    backbone = case.adapted(unfreeze)
    set_trainable(backbone, last_stages(backbone, unfreeze))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    moving = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        features = backbone.features(case.inputs, case.pooling)
        (features * torch.linspace(-1, 1, features.shape[1])).sum().backward()
        optimizer.step()
    assert_frozen(backbone)
    return before


@pytest.mark.parametrize("family", FAMILIES)
def test_new_adapters_change_no_output(case_of: Callable[[str], Case], family: str) -> None:
    case = case_of(family)
    before = case.features()
    case.adapted()
    assert torch.equal(case.features(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapter_of_the_last_stage_moves_and_nothing_else(
    case_of: Callable[[str], Case], family: str
) -> None:
    case = case_of(family)
    before = trained(case)
    after = case.backbone.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    last = f"stages.{case.backbone.n_stages}."
    expected = {name for name in after if is_adapter(name)}
    assert expected
    assert moved == {name for name in expected if name.startswith(last)} == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_answer_as_the_adapters_did(
    case_of: Callable[[str], Case], family: str
) -> None:
    case = case_of(family)
    torch.manual_seed(0)
    plain, names = case.features(), list(case.backbone.state_dict())
    for name, parameter in case.adapted().named_parameters():
        if is_adapter(name):
            torch.nn.init.normal_(parameter)
    adapted = case.features()
    merge_adapters(case.backbone)
    scale = float(adapted.abs().max())
    assert float((adapted - plain).abs().max()) > 1e-2 * scale, "the adapters do nothing"
    torch.testing.assert_close(case.features(), adapted, rtol=1e-4, atol=1e-5 * scale)
    assert list(case.backbone.state_dict()) == names
    assert not case.backbone.adapted


@pytest.mark.parametrize("family", FAMILIES)
def test_query_and_value_get_adapters_or_the_layer_that_computes_them(
    case_of: Callable[[str], Case], family: str
) -> None:
    for stage in list(case_of(family).backbone.stages)[1:]:
        blocks = {path.rpartition(".")[0] for path in projections(stage)}
        names = {path.rpartition(".")[2] for path in projections(stage)}
        assert blocks
        assert len(names) == (1 if names & {"in_proj", "Wqkv", "qkv"} else 2)
        assert not [name for name in names if "k" in name and name not in ("Wqkv", "qkv")]


def test_stages_below_get_none(case_of: Callable[[str], Case]) -> None:
    backbone = case_of("bert").adapted(unfreeze=2)
    with_some = {name.split(".")[1] for name in backbone.state_dict() if is_adapter(name)}
    assert with_some == {"2", "3"}
    set_trainable(backbone, last_stages(backbone, 1))
    backbone.train()
    assert_frozen(backbone)
    moving = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in moving} == {"3"}


def test_what_adapters_stand_beside_must_not_move(case_of: Callable[[str], Case]) -> None:
    backbone = case_of("bert").adapted()
    set_trainable(backbone, last_stages(backbone, 1))
    frozen = next(p for n, p in backbone.stages[3].named_parameters() if "base_layer" in n)
    frozen.requires_grad_(True)
    with pytest.raises(AssertionError, match="frozen: stage 3 requires a gradient"):
        assert_frozen(backbone)


def test_adapters_are_the_seeds_and_leave_the_random_state(
    case_of: Callable[[str], Case], tmp_path: Path
) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        case = Case("bert", folder)
        torch.manual_seed(number)
        state = torch.get_rng_state()
        backbone = case.adapted(seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        found.append({n: t for n, t in backbone.state_dict().items() if is_adapter(n)})
    same = [all(torch.equal(found[0][n], other[n]) for n in other) for other in found]
    assert same == [True, True, False]


def test_the_weights_digest_after_merging_nothing_is_the_one_before(
    case_of: Callable[[str], Case],
) -> None:
    case = case_of("bert")
    before = tensors_digest(case.backbone)
    merge_adapters(case.adapted())
    assert tensors_digest(case.backbone) == before


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("vit_tiny_patch16_224", True),
        ("swin_tiny_patch4_window7_224", True),
        ("beit_base_patch16_224", False),  # reads the projection's weights without calling it
        ("eva02_tiny_patch14_224", False),  # likewise
        ("torchvision/vit_b_16", False),  # its projections are one bare parameter
        ("resnet18", False),
        ("coatnet_0_rw_224", False),  # attention in its last stages only
    ],
)
def test_backbones_without_such_attention_take_none(name: str, takes: bool) -> None:
    assert facts_for(name).takes_adapters is takes
    with torch.device("meta"):
        backbone = build_backbone(BackboneSpec(name=name, weights="none"))
    assert takes_adapters(backbone) is takes
