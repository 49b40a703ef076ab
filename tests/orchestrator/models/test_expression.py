"""Equal expressions are equal computations, and unequal ones are told apart."""

from __future__ import annotations

import torch
from torch import nn

from orchestrator.models.expression import expression_of

IMAGES = torch.empty(2, 4, device="meta")


def layers() -> tuple[nn.Linear, nn.Linear]:
    with torch.device("meta"):
        return nn.Linear(4, 4), nn.Linear(4, 4)


def leaves(*modules: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{i}.{n}": p for i, m in enumerate(modules) for n, p in m.named_parameters()}


def test_the_same_operations_on_the_same_parameters_are_equal() -> None:
    a, b = layers()
    known = leaves(a, b)

    one = expression_of(lambda x: b(a(x).relu()), IMAGES, known)
    other = expression_of(nn.Sequential(a, nn.ReLU(), b), IMAGES, known)
    assert one == other


def test_another_order_parameter_operation_or_operand_is_not_equal() -> None:
    a, b = layers()
    known = leaves(a, b)
    computations = (
        lambda x: b(a(x)),
        lambda x: a(b(x)),
        lambda x: a(a(x)),
        lambda x: b(a(x)).relu(),
        lambda x: b(a(x).relu_()),
        lambda x: b(a(x)) + x,
        lambda x: b(a(x)) + 1,
    )

    names = [expression_of(compute, IMAGES, known) for compute in computations]
    assert len(set(names)) == len(computations)


def test_a_tensor_from_elsewhere_has_no_name() -> None:
    a, b = layers()
    known = leaves(a)

    assert "unknown" in expression_of(lambda x: b.weight, IMAGES, known)
