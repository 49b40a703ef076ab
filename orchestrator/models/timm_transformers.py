"""How timm's transformers of one resolution are split: every block is a stage.

`unfreeze: k` then means k blocks. The embedding (patches, class token, positions) is the stem, run
by timm's own code; the closing norm belongs to the last block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.models.split import (
    Part,
    Run,
    Split,
    UnsupportedFamilyError,
    chain,
    own_tensors,
)
from orchestrator.models.timm_head import timm_head


def _split_tokens(
    model: Any,
    *,
    stem: tuple[str, ...],
    run_stem: Run,
    blocks: Sequence[nn.Module],
    norm: nn.Module | None = None,
    channels_last: bool = False,
) -> Split:
    """A transformer: embedding, then blocks of which each is a stage, the last with the norm.

    Parameters and buffers of the model itself (class token, position embedding) belong to the stem.
    """
    if norm is not None:
        blocks = [*blocks[:-1], chain([("block", blocks[-1]), ("norm", norm)])]
    return Split(
        stages=(Part(model, {*stem, *own_tensors(model)}, run_stem), *blocks),
        closing=timm_head(model, {*stem, "blocks", "norm"}),
        channels_last=channels_last,
        n_prefix_tokens=getattr(model, "num_prefix_tokens", 0),
    )


def _vit_stem(model: Any, images: Tensor) -> Tensor:
    tokens: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    return tokens


def _split_vit(model: Any) -> Split:
    stem = ("patch_embed", "pos_drop", "patch_drop", "norm_pre")
    return _split_tokens(
        model, stem=stem, run_stem=_vit_stem, blocks=list(model.blocks), norm=model.norm
    )


def _beit_stem(model: Any, images: Tensor) -> Tensor:
    x: Tensor = model.patch_embed(images)
    x = _with_class_token(model, x)
    if model.pos_embed is not None:
        x = x + model.pos_embed
    tokens: Tensor = model.pos_drop(x)
    return tokens


def _split_beit(model: Any) -> Split:
    if model.rel_pos_bias is not None:
        raise UnsupportedFamilyError("the blocks share one relative position bias")
    return _split_tokens(
        model,
        stem=("patch_embed", "pos_drop"),
        run_stem=_beit_stem,
        blocks=list(model.blocks),
        norm=model.norm,
    )


def _rel_pos_stem(model: Any, images: Tensor) -> Tensor:
    return _with_class_token(model, model.patch_embed(images))


def _split_rel_pos(model: Any) -> Split:
    if model.shared_rel_pos is not None:
        raise UnsupportedFamilyError("the blocks share one relative position bias")
    return _split_tokens(
        model,
        stem=("patch_embed",),
        run_stem=_rel_pos_stem,
        blocks=list(model.blocks),
        norm=model.norm,
    )


def _with_class_token(model: Any, x: Tensor) -> Tensor:
    """`x` with the class token in front, if the model has one; timm's order and operations."""
    if model.cls_token is None:
        return x
    return torch.cat((model.cls_token.expand(x.shape[0], -1, -1), x), dim=1)


class RotaryBlock(nn.Module):
    """A block of an EVA or DINOv3 transformer with the rotary embedding of its token grid.

    timm computes the embedding once and hands it to all blocks; a stage that can start from cached
    activations computes it for itself. It has no parameters, so no stage owns it.
    """

    def __init__(self, block: nn.Module, rope: Any, n_prefix_tokens: int) -> None:
        super().__init__()
        self.block = block
        self.rope = rope
        self.n_prefix_tokens = n_prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[N, L, C]` of a square image through the block."""
        if hasattr(self.rope, "feat_shape") and self.rope.feat_shape is not None:
            embedding = self.rope.get_embed()
        else:
            embedding = self.rope.get_embed(shape=grid_of(x, self.n_prefix_tokens))
        out: Tensor = self.block(x, rope=embedding)
        return out


def grid_of(tokens: Tensor, n_prefix_tokens: int) -> tuple[int, int]:
    """Height and width of the square patch grid behind tokens `[N, L, C]`."""
    side = math.isqrt(tokens.shape[1] - n_prefix_tokens)
    return side, side


def _eva_stem(model: Any, images: Tensor) -> Tensor:
    tokens, _ = model._pos_embed(model.patch_embed(images))
    out: Tensor = model.norm_pre(tokens)
    return out


def _split_eva(model: Any) -> Split:
    blocks = list(model.blocks)
    if model.rope is not None:
        if list(model.rope.parameters()):
            raise UnsupportedFamilyError("the blocks share learned rotary frequencies")
        blocks = [RotaryBlock(block, model.rope, model.num_prefix_tokens) for block in blocks]
    stem = ("patch_embed", "pos_drop", "patch_drop", "norm_pre", "rope")
    return _split_tokens(model, stem=stem, run_stem=_eva_stem, blocks=blocks, norm=model.norm)


def _hiera_stem(model: Any, images: Tensor) -> Tensor:
    tokens: Tensor = model.unroll(model._pos_embed(model.patch_embed(images)))
    return tokens


def _split_hiera(model: Any) -> Split:
    return _split_tokens(
        model,
        stem=("patch_embed", "unroll", "reroll"),
        run_stem=_hiera_stem,
        blocks=list(model.blocks),
    )


def _hiera_det_stem(model: Any, images: Tensor) -> Tensor:
    x: Tensor = model._pos_embed(model.patch_embed(images))
    return x


def _split_hiera_det(model: Any) -> Split:
    return _split_tokens(
        model,
        stem=("patch_embed",),
        run_stem=_hiera_det_stem,
        blocks=list(model.blocks),
        channels_last=True,
    )


def _cait_stem(model: Any, images: Tensor) -> Tensor:
    tokens: Tensor = model.pos_drop(model.patch_embed(images) + model.pos_embed)
    return tokens


def _split_cait(model: Any) -> Split:
    stem = Part(model, ("patch_embed", "pos_drop", "pos_embed"), _cait_stem)
    return _split_class_attention(model, stem, list(model.blocks), "blocks_token_only")


class GridBlock(nn.Module):
    """A block of XCiT, which wants to know the patch grid of its tokens."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[N, L, C]` of a square image through the block."""
        out: Tensor = self.block(x, *grid_of(x, 0))
        return out


def _xcit_stem(model: Any, images: Tensor) -> Tensor:
    x, (height, width) = model.patch_embed(images)
    n = images.shape[0]
    if model.pos_embed is not None:
        x = x + model.pos_embed(n, height, width).reshape(n, -1, x.shape[1]).permute(0, 2, 1)
    tokens: Tensor = model.pos_drop(x)
    return tokens


def _split_xcit(model: Any) -> Split:
    stem = Part(model, ("patch_embed", "pos_embed", "pos_drop"), _xcit_stem)
    blocks = [GridBlock(block) for block in model.blocks]
    return _split_class_attention(model, stem, blocks, "cls_attn_blocks")


def _split_class_attention(
    model: Any, stem: nn.Module, blocks: Sequence[nn.Module], readers: str
) -> Split:
    """CaiT and XCiT: a class token enters after the last block and reads the patches.

    That reading is pooling: it closes the last stage, whose output is patch tokens only.
    """
    end = Part(model, (readers, "norm", "cls_token"), _class_attention)
    used = {"patch_embed", "pos_embed", "pos_drop", "blocks", readers, "norm"}
    closing = chain([("attention", end), ("head", timm_head(model, used))])
    return Split(stages=(stem, *blocks), closing=closing)


def _class_attention(model: Any, x: Tensor) -> Tensor:
    tokens: Tensor = model.norm(model.forward_cls(x))
    return tokens


TRANSFORMERS: dict[str, Callable[[Any], Split]] = {
    "Beit": _split_beit,
    "Cait": _split_cait,
    "Eva": _split_eva,
    "Hiera": _split_hiera,
    "HieraDet": _split_hiera_det,
    "VisionTransformer": _split_vit,
    "VisionTransformerDistilled": _split_vit,
    "VisionTransformerRelPos": _split_rel_pos,
    "Xcit": _split_xcit,
}
