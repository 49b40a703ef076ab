"""Low-rank adapters beside the attention of a backbone's stages, by peft.

Hu et al., LoRA (ICLR 2022): a projection W x becomes W x + (alpha / rank) B A x. W stays as it was
pretrained; A starts random and B at zero, so that training starts from the pretrained outputs. Of
attention it is the query and the value that get adapters (§7.1); where a family computes query, key
and value in one layer, that layer does. In the end B A is added to W, and nothing of it is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from orchestrator.models.backbone import Backbone, on_meta

# What the libraries call the projections that get adapters.
_SEPARATE = "query value query_proj value_proj q_proj v_proj q_lin v_lin q v"
_IN_ONE = "in_proj Wqkv qkv"  # of DeBERTa, ModernBERT, timm
NAMES = frozenset(f"{_SEPARATE} {_IN_ONE}".split())


def projections(stage: nn.Module) -> dict[str, nn.Linear]:
    """The layers of a stage that adapters stand beside, by their path in it."""
    return {
        path: module
        for path, module in stage.named_modules()
        if type(module) is nn.Linear and path.rpartition(".")[2] in NAMES
    }


@torch.no_grad()
def takes_adapters(backbone: Backbone) -> bool:
    """Whether an image backbone has such layers in every stage, and calls all of them.

    Some libraries read the weights of a projection without calling it: an adapter beside it would
    never be asked.
    """
    wanted = [set(projections(stage).values()) for stage in backbone.stages]
    if not all(wanted[1:]):
        return False
    called: set[nn.Module] = set()
    layers = [layer for some in wanted[1:] for layer in some]
    handles = [layer.register_forward_hook(partial(_note, called)) for layer in layers]
    size = backbone.input.size
    x: Any = torch.empty(2, 3, size, size, device="meta")
    for stage in backbone.stages:
        x = on_meta(stage, x)
    for handle in handles:
        handle.remove()
    return called == set(layers)


def _note(called: set[nn.Module], layer: nn.Module, *_: Any) -> None:
    called.add(layer)


def add_adapters(
    backbone: Backbone,
    stages: Iterable[int],
    *,
    rank: int,
    alpha: int,
    dropout: float,
    seed: int,
) -> None:
    """Puts adapters into some stages; from now on they are all of the backbone that can train.

    Args:
        backbone: Without adapters; changed in place.
        stages: Of those that `takes_adapters` speaks of.
        rank: Columns of A, rows of B.
        alpha: Divided by the rank, the factor of an adapter's output.
        dropout: Of what an adapter reads, in train mode.
        seed: Of A. The global random state stays.
    """
    from peft import LoraConfig, inject_adapter_in_model

    assert not backbone.adapted, "the backbone has adapters already"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for number in stages:
            stage = backbone.stages[number]
            names = list(projections(stage))
            assert names, f"stage {number} of {backbone.spec.name} has no attention"
            config = LoraConfig(
                r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names
            )
            inject_adapter_in_model(config, stage)
    backbone.adapted = True
    backbone.train(backbone.training)  # new modules are in train mode


def merge_adapters(backbone: Backbone) -> None:
    """Adds every adapter to the weights it stands beside, and removes it.

    The outputs stay as they are in eval mode, up to rounding.
    """
    from peft.tuners.lora import LoraLayer

    for owner in list(backbone.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, LoraLayer):
                child.merge(safe_merge=True)
                setattr(owner, name, child.get_base_layer())
    backbone.adapted = False
