"""How torchvision's classifiers are split into stages, family by family."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.models.split import Split, UnsupportedFamilyError, chain, chain_of


def split_torchvision(model: nn.Module) -> Split:
    """Takes a torchvision classifier apart; its last linear layer is dropped.

    Raises:
        UnsupportedFamilyError: No rule knows this class of model.
    """
    family = type(model).__name__
    if family not in FAMILIES:
        raise UnsupportedFamilyError(f"no rule splits torchvision's {family}")
    return FAMILIES[family](model)


def _pooled(model: Any, between: Iterable[nn.Module] = ()) -> nn.Module:
    """Average pooling, then what the classifier does before its dropout and last linear layer."""
    return nn.Sequential(model.avgpool, *between)


def _split_resnet(model: Any) -> Split:
    stages = ("layer1", "layer2", "layer3", "layer4")
    return Split(
        stages=(chain_of(model, "conv1 bn1 relu maxpool"), *(chain_of(model, s) for s in stages)),
        closing=_pooled(model, [nn.Flatten(1)]),
    )


def _split_efficientnet(model: Any) -> Split:
    """`features` 0 is the stem and the last item the closing convolution."""
    stem, *blocks, last, conv = model.features
    return Split(
        stages=(stem, *blocks, chain([("block", last), ("conv", conv)])),
        closing=_pooled(model, [nn.Flatten(1)]),
    )


def _split_mobilenet(model: Any) -> Split:
    split = _split_efficientnet(model)
    hidden, activation = model.classifier[:2]
    return Split(split.stages, closing=_pooled(model, [nn.Flatten(1), hidden, activation]))


def _split_convnext(model: Any) -> Split:
    """`features` alternates downsampling and blocks; a stage is both, the first has the stem's."""
    stem, first, *rest = model.features
    pairs = zip(rest[::2], rest[1::2], strict=True)
    norm, flatten = model.classifier[:2]
    return Split(
        stages=(stem, first, *(chain([("down", down), ("blocks", b)]) for down, b in pairs)),
        closing=_pooled(model, [norm, flatten]),
    )


def _split_densenet(model: Any) -> Split:
    """A transition belongs to the dense block before it; the closing ReLU is functional there."""
    features = model.features
    last = [("block", features.denseblock4), ("norm", features.norm5)]
    return Split(
        stages=(
            chain_of(features, "conv0 norm0 relu0 pool0"),
            *(chain_of(features, f"denseblock{i} transition{i}") for i in (1, 2, 3)),
            chain([*last, ("relu", nn.ReLU(inplace=True))]),
        ),
        closing=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)),
    )


class PatchStem(nn.Module):
    """The embedding of torchvision's ViT: patches, class token, positions (of one image size)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.conv_proj: nn.Conv2d = model.conv_proj
        self.class_token: nn.Parameter = model.class_token
        self.pos_embedding: nn.Parameter = model.encoder.pos_embedding
        self.dropout: nn.Module = model.encoder.dropout

    def forward(self, images: Tensor) -> Tensor:
        """Images `[N, 3, H, W]` to tokens `[N, 1 + L, C]`."""
        patches = self.conv_proj(images).flatten(2).permute(0, 2, 1)
        tokens = torch.cat([self.class_token.expand(images.shape[0], -1, -1), patches], dim=1)
        embedded: Tensor = self.dropout(tokens + self.pos_embedding)
        return embedded


class ClassToken(nn.Module):
    """Pools tokens to the first."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[N, L, C]` to `[N, C]`."""
        return tokens[:, 0]


def _split_vit(model: Any) -> Split:
    *blocks, last = model.encoder.layers
    return Split(
        stages=(PatchStem(model), *blocks, chain([("block", last), ("norm", model.encoder.ln)])),
        closing=ClassToken(),
        n_prefix_tokens=1,
    )


FAMILIES: dict[str, Callable[[Any], Split]] = {
    "ConvNeXt": _split_convnext,
    "DenseNet": _split_densenet,
    "EfficientNet": _split_efficientnet,
    "MobileNetV3": _split_mobilenet,
    "ResNet": _split_resnet,
    "VisionTransformer": _split_vit,
}
