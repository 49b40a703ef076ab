"""Proof that two computations are the same, without computing them.

A run is recorded as an expression: every tensor is named by the operation that made it and the
names of its operands. Two outputs of one name are the same operations on the same parameters, so
their values agree to the last bit, whatever the weights. On the meta device this costs no memory,
so it reaches models of any size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only


class ExpressionRecorder(TorchDispatchMode):
    """Names every tensor that is computed while it is active.

    Args:
        leaves: The tensors to start from (parameters, buffers, the input), by name.
    """

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._names = {id(tensor): name for name, tensor in leaves.items()}
        self._alive: list[Tensor] = list(leaves.values())  # an id is only unique while alive

    def name_of(self, tensor: Tensor) -> str:
        """The expression that made a tensor; its id if it was made before or outside."""
        return self._names.get(id(tensor), f"unknown {tuple(tensor.shape)} {tensor.dtype}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = tree_map_only(Tensor, self.name_of, (args, kwargs or {}))
        expression = hashlib.sha256(f"{func} {named}".encode()).hexdigest()[:24]
        result = func(*args, **(kwargs or {}))
        for position, output in enumerate(tree_flatten(result)[0]):
            if isinstance(output, Tensor):
                self._names[id(output)] = f"{expression}.{position}"
                self._alive.append(output)
        return result


@torch.no_grad()
def expression_of(
    compute: Callable[[Tensor], Tensor], images: Tensor, leaves: Mapping[str, Tensor]
) -> str:
    """The name of what `compute` makes of `images`, in terms of the named tensors."""
    recorder = ExpressionRecorder({"images": images, **leaves})
    with recorder:
        return recorder.name_of(compute(images))
