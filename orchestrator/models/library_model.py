"""The libraries' own models, by the names that a spec writes.

A plain name is timm's; `torchvision/<name>` is torchvision's; `resnet50_fpn` is ours.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torchvision
from torch import nn

from orchestrator.models.pyramid import PyramidResNet, split_pyramid
from orchestrator.models.split import Split
from orchestrator.models.timm_families import split_timm
from orchestrator.models.torchvision_families import split_torchvision
from orchestrator.spec.backbone_table import ImageLibrary, library_of


def library_model(name: str, *, seed: int) -> nn.Module:
    """The library's model at its native size without weights, its initialisation seeded.

    The global random state is left as it was.

    Args:
        name: As in the table of backbones.
        seed: Of the random initialisation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA too
        return _create(name, library_of(name))


def _create(name: str, library: ImageLibrary) -> nn.Module:
    model: Any
    match library:
        case "timm":
            model = timm.create_model(name, pretrained=False, num_classes=0)
        case "torchvision":
            model = torchvision.models.get_model(torchvision_name(name), weights=None)
        case "orchestrator":
            model = PyramidResNet()
    assert isinstance(model, nn.Module)
    return model


def split_model(model: nn.Module, library: ImageLibrary) -> Split:
    """Takes a library's model apart, sharing its tensors.

    Raises:
        UnsupportedFamilyError: No rule splits this model.
    """
    match library:
        case "timm":
            return split_timm(model)
        case "torchvision":
            return split_torchvision(model)
        case "orchestrator":
            assert isinstance(model, PyramidResNet)
            return split_pyramid(model)


def torchvision_name(name: str) -> str:
    """The name that torchvision knows: `torchvision/resnet50` is its `resnet50`."""
    return name.removeprefix("torchvision/")
