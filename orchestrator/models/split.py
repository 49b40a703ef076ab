"""A library's model taken apart: an ordered chain of stages, and what pools the last one.

The library's own modules and methods keep doing the work, so nothing is re-implemented: a stage is
a library module, several of them in a row, or a `Part`.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

Run = Callable[[Any, Tensor], Tensor]
M = TypeVar("M", bound=nn.Module)


class UnsupportedFamilyError(Exception):
    """No rule splits this model; its name stays out of the table of backbones."""


@dataclass(frozen=True)
class Split:
    """What a `Backbone` is made of.

    Stage 0 is the stem. Each stage maps the output of the one before it; between two stages at a
    cut there is one tensor, either a map (`[N, C, H, W]`, or `[N, H, W, C]` if `channels_last`) or
    tokens (`[N, L, C]`, the first `n_prefix_tokens` of which are no patches).

    Attributes:
        stages: The stem and the S stages; a closing conv or norm is inside the last.
        closing: From the last stage's output to what the library's classifier sees, `[N, D]`. Its
            parameters are counted with the last stage.
        cuts: The stages after which one tensor carries all that follows; None for every stage.
    """

    stages: tuple[nn.Module, ...]
    closing: nn.Module
    channels_last: bool = False
    n_prefix_tokens: int = 0
    cuts: tuple[int, ...] | None = None


class Part(nn.Module):
    """Some children of a library model, run by one of the model's own methods.

    The model is copied shallowly and everything not named is dropped from the copy, so the tensors
    are shared with the original and no other parameter is held.

    Args:
        owner: The library model.
        names: The children, and the parameters and buffers of the model itself, to keep.
        run: A module-level function of the reduced model and a tensor.
    """

    def __init__(self, owner: nn.Module, names: Collection[str], run: Run) -> None:
        super().__init__()
        self.part = reduced(owner, names)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        """The library's own computation over the kept children."""
        return self.run(self.part, x)


def reduced(owner: M, names: Collection[str]) -> M:
    """A shallow copy of a module that holds only the named children, parameters and buffers."""
    part = copy.copy(owner)
    for kind in ("_modules", "_parameters", "_buffers"):
        kept = {name: value for name, value in getattr(owner, kind).items() if name in names}
        object.__setattr__(part, kind, kept)
    return part


def own_tensors(owner: nn.Module) -> set[str]:
    """Names of the parameters and buffers that belong to a module itself, not to a child."""
    return {
        *(name for name, _ in owner.named_parameters(recurse=False)),
        *(name for name, _ in owner.named_buffers(recurse=False)),
    }


def chain(modules: Iterable[tuple[str, nn.Module]]) -> nn.Module:
    """The modules in a row; a single one stays itself. Names may be dotted paths."""
    named = OrderedDict((name.replace(".", "_"), module) for name, module in modules)
    return next(iter(named.values())) if len(named) == 1 else nn.Sequential(named)


def chain_of(owner: nn.Module, paths: str) -> nn.Module:
    """The owner's submodules at the space-separated `paths`, in a row."""
    return chain((path, owner.get_submodule(path)) for path in paths.split())
