"""ResNet-50 with a feature pyramid: features of four scales, for defects that are small.

Lin et al., Feature Pyramid Networks for Object Detection (CVPR 2017). The trunk is torchvision's
`resnet50` with its weights; the pyramid has no published weights without a detector around it and
starts random, seeded.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import FeaturePyramidNetwork

from orchestrator.models.split import Split, chain_of

PYRAMID_CHANNELS = 256
_WIDTHS = [256, 512, 1024, 2048]


class PyramidResNet(nn.Module):
    """The library model: trunk and pyramid, neither run here but by the stages it is split into."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = resnet50(weights=None)
        self.trunk.fc = nn.Identity()
        self.fpn = FeaturePyramidNetwork(_WIDTHS, PYRAMID_CHANNELS)

    def forward(self, images: Tensor) -> Tensor:
        """Images `[N, 3, H, W]` to pooled levels `[N, 2048]`, written as plainly as can be."""
        trunk: Any = self.trunk
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        maps = OrderedDict[str, Tensor]()
        for name in ("layer1", "layer2", "layer3", "layer4"):
            maps[name] = x = getattr(trunk, name)(x)
        return pooled_levels(list(self.fpn(maps).values()))


def pooled_levels(levels: list[Tensor]) -> Tensor:
    """Mean and max over the positions of each level `[N, C, H, W]`, in a row: `[N, 2 C levels]`."""
    pools = [pool for level in levels for pool in (level.mean((2, 3)), level.amax((2, 3)))]
    return torch.cat(pools, dim=1)


class Keeping(nn.Module):
    """A layer that hands on the maps before it as well, newest last."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, maps: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The maps so far, and the layer's output for the newest."""
        so_far = (maps,) if isinstance(maps, Tensor) else maps
        return (*so_far, self.layer(so_far[-1]))


class Pyramid(nn.Module):
    """The feature pyramid as the last stage; its output is a map of one position."""

    def __init__(self, fpn: nn.Module) -> None:
        super().__init__()
        self.fpn = fpn

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Maps of layer1 … layer4 to `[N, 2048, 1, 1]`: mean and max of every level."""
        levels = self.fpn(OrderedDict((str(i), level) for i, level in enumerate(maps)))
        return pooled_levels(list(levels.values()))[:, :, None, None]


def split_pyramid(model: PyramidResNet) -> Split:
    """Stem, layer1 … layer4, pyramid: S = 5, so `unfreeze: 1` trains the pyramid alone.

    Between layer2 and the pyramid several maps are alive, so no single tensor can stand for what
    came before: there is no cut there.
    """
    trunk: Any = model.trunk
    return Split(
        stages=(
            chain_of(trunk, "conv1 bn1 relu maxpool"),
            trunk.layer1,
            *(Keeping(layer) for layer in (trunk.layer2, trunk.layer3, trunk.layer4)),
            Pyramid(model.fpn),
        ),
        closing=nn.Flatten(1),
        cuts=(0, 1, 5),
    )
