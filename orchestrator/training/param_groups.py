"""ParamGroups: named, disjoint sets of parameters that cover exactly what a Phase trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from orchestrator.spec.record import GroupRow
from orchestrator.training.network import Network
from orchestrator.training.phases import Phase


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with one rate and one weight decay."""

    name: str
    lr: float
    weight_decay: float
    parameters: tuple[nn.Parameter, ...]

    def row(self) -> GroupRow:
        """The group as a Record shows it."""
        return GroupRow(
            name=self.name,
            lr=self.lr,
            weight_decay=self.weight_decay,
            parameters=sum(p.numel() for p in self.parameters),
        )


def param_groups(network: Network, phase: Phase) -> tuple[ParamGroup, ...]:
    """The groups of a phase that `network` has entered, from the input to the head.

    Norms and biases (one-dimensional parameters) are not decayed: each stage makes a group with
    and a group without weight decay.
    """
    groups: list[ParamGroup] = []
    for stage in sorted(phase.stage_lrs):
        name = "stem" if stage == 0 else f"stage{stage}"
        parameters = network.backbone.movable_parameters_of(stage)
        groups += split_by_decay(name, phase.stage_lrs[stage], phase.weight_decay, parameters)
    groups += head_groups(network.head, phase)
    _assert_exact_cover(network, groups)
    return tuple(groups)


def head_groups(head: nn.Module, phase: Phase) -> list[ParamGroup]:
    """The groups of a phase that are the head's."""
    return split_by_decay("head", phase.head_lr, phase.weight_decay, head.parameters())


def split_by_decay(
    name: str, lr: float, weight_decay: float, parameters: Iterable[nn.Parameter]
) -> list[ParamGroup]:
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [
        ParamGroup(name, lr, weight_decay, tuple(matrices)),
        ParamGroup(f"{name} (norms, biases)", lr, 0.0, tuple(vectors)),
    ]
    return [group for group in groups if group.parameters]


def _assert_exact_cover(network: Network, groups: list[ParamGroup]) -> None:
    grouped = [id(p) for group in groups for p in group.parameters]
    trainable = {id(p) for p in network.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    assert set(grouped) == trainable, "the groups are not exactly the trainable parameters"
