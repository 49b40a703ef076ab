"""The groups of a phase are exactly what it trains."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
from torch import nn

from orchestrator.models.head import build_head
from orchestrator.spec.strategy import FeatureExtraction, Full, Partial, Scratch, Strategy
from orchestrator.training.network import Network
from orchestrator.training.param_groups import ParamGroup, param_groups
from orchestrator.training.phases import Phase, compile_phases
from tests.orchestrator.training.small_trials import initial_backbone

STRATEGIES = [
    FeatureExtraction(),
    FeatureExtraction(head="mlp"),
    *(Partial(unfreeze=k, warm_up_epochs=0) for k in (1, 2, 3)),
    Full(warm_up_epochs=0),
    Scratch(),
]


@dataclass(frozen=True)
class Entered:
    """A network in a phase, and the groups of it."""

    network: Network
    phase: Phase
    groups: tuple[ParamGroup, ...]


def entered(strategy: Strategy, backbone: str) -> Entered:
    trunk = copy.deepcopy(initial_backbone(backbone))
    head = build_head(strategy, n_features=trunk.feature_width(), n_outputs=3, seed=0)
    network = Network(trunk, head, strategy)
    (phase,) = compile_phases(strategy, trunk.n_stages)
    network.enter(phase)
    return Entered(network, phase, param_groups(network, phase))


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "resnet18"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.strategy)
def test_the_groups_cover_the_trainable_parameters_once(strategy: Strategy, backbone: str) -> None:
    found = entered(strategy, backbone)
    grouped = [id(p) for group in found.groups for p in group.parameters]
    trainable = [id(p) for p in found.network.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    names = [group.name for group in found.groups]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "resnet18"])
def test_norms_and_biases_are_not_decayed_and_all_else_is(backbone: str) -> None:
    found = entered(Full(warm_up_epochs=0, weight_decay=0.03), backbone)
    exempt = {
        id(parameter)
        for module in found.network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    for group in found.groups:
        for parameter in group.parameters:
            assert group.weight_decay == (0.0 if id(parameter) in exempt else 0.03)


def test_every_stage_has_its_own_rate_and_the_head_another() -> None:
    found = entered(Full(warm_up_epochs=0), "resnet18")
    for group in found.groups:
        name = group.name.removesuffix(" (norms, biases)")
        stage = 0 if name == "stem" else None if name == "head" else int(name[len("stage") :])
        rate = found.phase.head_lr if stage is None else found.phase.stage_lrs[stage]
        assert group.lr == rate
        owners = (
            found.network.head.parameters()
            if stage is None
            else found.network.backbone.parameters_of(stage)
        )
        assert {id(p) for p in group.parameters} <= {id(p) for p in owners}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.strategy)
def test_group_counts_add_up_to_the_trainable_and_with_the_frozen_to_all(
    strategy: Strategy,
) -> None:
    found = entered(strategy, "resnet18")
    trainable, frozen = found.network.counts()
    assert sum(group.row().parameters for group in found.groups) == trainable
    assert trainable + frozen == sum(p.numel() for p in found.network.parameters())
