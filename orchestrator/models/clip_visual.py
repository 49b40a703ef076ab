"""How a CLIP's visual tower is split: a ViT's blocks, or a ResNet's four layers, are its stages.

Towers of other kinds are one stage: they can be probed and fine-tuned whole.

Features under pooling `last` are the tower's output in the space that it shares with texts, before
it is scaled to length one. The projection into that space closes the last stage.
"""

from __future__ import annotations

from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from orchestrator.models.split import Part, Split, chain


def split_visual(visual: nn.Module) -> Split:
    """Takes a visual tower apart, sharing its tensors; one that no rule splits is one stage."""
    if isinstance(visual, ModifiedResNet):
        return _split_resnet(visual)
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        return _split_vit(visual)
    return Split(stages=(nn.Identity(), _Whole(visual)), closing=nn.Identity())


class _Whole(nn.Module):
    """A tower that stays in one piece, from images to features; its tokens are dropped."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        found = self.visual(images)
        features: Tensor = found[0] if isinstance(found, tuple) else found
        return features


def _vit_stem(visual: Any, images: Tensor) -> Tensor:
    tokens: Tensor = visual._embeds(images)
    return tokens


def _vit_pool(visual: Any, tokens: Tensor) -> Tensor:
    pooled, _ = visual._global_pool(tokens)
    if visual.final_ln_after_pool:
        pooled = visual.ln_post(pooled)
    projected: Tensor = pooled @ visual.proj
    return projected


def _split_vit(visual: Any) -> Split:
    assert visual.transformer.batch_first
    stem = ("conv1", "class_embedding", "positional_embedding", "patch_dropout", "ln_pre")
    closing = ["proj"]
    blocks: list[nn.Module] = list(visual.transformer.resblocks)
    if visual.final_ln_after_pool:
        closing.append("ln_post")
    else:
        blocks[-1] = chain([("block", blocks[-1]), ("norm", visual.ln_post)])
    return Split(
        stages=(Part(visual, stem, _vit_stem), *blocks),
        closing=Part(visual, closing, _vit_pool),
        n_prefix_tokens=1,
    )


def _resnet_stem(visual: Any, images: Tensor) -> Tensor:
    out: Tensor = visual.stem(images)
    return out


def _split_resnet(visual: Any) -> Split:
    layers = ("layer1", "layer2", "layer3", "layer4")
    stem = {name for name, _ in visual.named_children()} - {*layers, "attnpool"}
    return Split(
        stages=(Part(visual, stem, _resnet_stem), *(getattr(visual, name) for name in layers)),
        closing=visual.attnpool,
    )
