"""How timm's classifiers are split into stages, family by family.

Most of timm is a plain chain of children: one line of `CHAINS` says which of them are the stem,
the stages and the closing layers; `timm_transformers` knows the rest. That stages composed in order
are the library's `forward_features` is proved for every name when the table of backbones is
generated (see `backbone_facts`).

Left out on purpose: EfficientFormer, EfficientViT (MSRA), LeViT and TinyViT, which in eval mode
keep attention biases computed from parameters and would answer with stale ones once weights are
restored.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from orchestrator.models.split import Split, UnsupportedFamilyError, chain, chain_of
from orchestrator.models.timm_head import timm_head
from orchestrator.models.timm_transformers import TRANSFORMERS


@dataclass(frozen=True)
class Chain:
    """A family whose `forward_features` runs children one after the other.

    Attributes:
        stem: Paths of stage 0, separated by spaces.
        stages: The path of the container whose items are the stages, or one string of paths each.
        closing: Paths of what follows the last stage before pooling, counted with it.
    """

    stem: str
    stages: str | tuple[str, ...]
    closing: str = ""
    channels_last: bool = False

    def stage_paths(self, model: nn.Module) -> tuple[str, ...]:
        """The paths of each stage 1 … S, the closing ones with the last."""
        stages = self.stages
        if isinstance(stages, str):
            container = model.get_submodule(stages)
            stages = tuple(f"{stages}.{name}" for name, _ in container.named_children())
        return (*stages[:-1], f"{stages[-1]} {self.closing}".strip())


_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_STAGES = Chain("stem", "stages")
_STAGES_NORM = Chain("stem", "stages", "norm")
_STAGES_PRE_NORM = Chain("stem", "stages", "norm_pre")
_PATCHED = Chain("patch_embed", "stages")
_GHOST = Chain("conv_stem bn1 act1", "blocks")
_SWIN = Chain("patch_embed", "layers", "norm", channels_last=True)

CHAINS: dict[str, Chain] = {
    "ByobNet": Chain("stem", "stages", "final_conv"),
    "CPUBone": _STAGES,
    "CSATv2": Chain("stem_dct", "stages"),
    "ConvMixer": Chain("stem", "blocks"),
    "ConvNeXt": _STAGES_PRE_NORM,
    "CspNet": _STAGES,
    "CspNext": _STAGES,
    "DLA": Chain("base_layer", ("level0", "level1", "level2", "level3", "level4", "level5")),
    "DaVit": _STAGES_PRE_NORM,
    "DenseNet": Chain(
        "features.conv0 features.norm0 features.pool0",
        (
            "features.denseblock1 features.transition1",
            "features.denseblock2 features.transition2",
            "features.denseblock3 features.transition3",
            "features.denseblock4",
        ),
        "features.norm5",
    ),
    "EdgeNeXt": _STAGES_PRE_NORM,
    "EfficientNet": Chain("conv_stem bn1", "blocks", "conv_head bn2"),
    "EfficientVit": _STAGES,
    "EfficientVitLarge": _STAGES,
    "FasterNet": _PATCHED,
    "FastVit": Chain("stem", "stages", "final_conv"),
    "FocalNet": Chain("stem", "layers", "norm"),
    "GhostNet": _GHOST,
    "GlobalContextVit": _STAGES,
    "HighPerfGpuNet": _STAGES,
    "IFormer": _STAGES,
    "InceptionResnetV2": Chain(
        "conv2d_1a conv2d_2a conv2d_2b maxpool_3a conv2d_3b conv2d_4a maxpool_5a",
        ("mixed_5b repeat", "mixed_6a repeat_1", "mixed_7a repeat_2 block8"),
        "conv2d_7b",
    ),
    "LCNetV2": _STAGES,
    "LowFormer": _STAGES,
    "MambaOut": Chain("stem", "stages", channels_last=True),
    "MaxxVit": _STAGES_NORM,
    "MetaFormer": _STAGES,
    "MetaNeXt": _STAGES,
    "MlpMixer": Chain("stem", "blocks", "norm"),
    "MobileNetV3": Chain("conv_stem bn1", "blocks"),
    "NextViT": _STAGES_NORM,
    "NormFreeNet": Chain("stem", "stages", "final_conv final_act"),
    "PyramidVisionTransformerV2": _PATCHED,
    "RDNet": Chain("stem", "dense_stages", "norm_pre"),
    "RegNet": Chain("stem", ("s1", "s2", "s3", "s4"), "final_conv"),
    "RepGhostNet": _GHOST,
    "RepVit": _STAGES,
    "ResNet": Chain("conv1 bn1 act1 maxpool", _LAYERS),
    "ResNetV2": _STAGES_NORM,
    "RexNet": Chain("stem", "features"),
    "SENet": Chain("layer0 pool0", _LAYERS),
    "SHViT": _PATCHED,
    "Sequencer2d": Chain("stem", "stages", "norm", channels_last=True),
    "StarNet": _STAGES_NORM,
    "SwiftFormer": _STAGES_NORM,
    "SwinTransformer": _SWIN,
    "SwinTransformerV2": _SWIN,
    "SwinTransformerV2Cr": _PATCHED,
    "TResNet": Chain("body.s2d body.conv1", tuple(f"body.{layer}" for layer in _LAYERS)),
    "VovNet": _STAGES,
    "XceptionAligned": Chain("stem", "blocks", "act"),
}


def split_timm(model: nn.Module) -> Split:
    """Takes a timm classifier apart.

    Raises:
        UnsupportedFamilyError: No rule knows this class of model or this variant of it.
    """
    family = type(model).__name__
    if family in CHAINS:
        return _split_chain(model, CHAINS[family])
    if family == "VGG":
        return _split_vgg(model)
    if family in TRANSFORMERS:
        return TRANSFORMERS[family](model)
    raise UnsupportedFamilyError(f"no rule splits timm's {family}")


def _split_vgg(model: nn.Module) -> Split:
    """Stages end with their pooling; the first is the stem, so S = 4."""
    stages: list[list[tuple[str, nn.Module]]] = [[]]
    for name, layer in model.get_submodule("features").named_children():
        stages[-1].append((f"features.{name}", layer))
        if isinstance(layer, nn.MaxPool2d):
            stages.append([])
    return Split(
        stages=tuple(chain(stage) for stage in stages if stage),
        closing=timm_head(model, {"features"}),
    )


def _split_chain(model: nn.Module, rule: Chain) -> Split:
    stages = rule.stage_paths(model)
    used = {path.partition(".")[0] for paths in (rule.stem, *stages) for path in paths.split()}
    return Split(
        stages=(chain_of(model, rule.stem), *(chain_of(model, paths) for paths in stages)),
        closing=timm_head(model, used),
        channels_last=rule.channels_last,
    )
