"""CLIPs by name: what is known of one before torch is imported.

A reference is `clip:ARCHITECTURE/PRETRAINED` (both as open_clip lists them, e.g.
`clip:ViT-B-32/laion2b_s34b_b79k`), `clip:ARCHITECTURE` where a weights file is given beside it,
`clip:hub:OWNER/NAME`, or the path of a folder with an open_clip_config.json, with `clip:` or
without. Architectures are read from the installed open_clip's own JSON files; what its pretrained
weights want of an image is in `clip_pretrained.json`, which `python -m
orchestrator.models.clip_pretrained` generates.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import SpecError, WeightsError, listing, nearest, shown
from orchestrator.spec.backbone_table import BackboneFacts, facts_for, is_image_backbone
from orchestrator.spec.locations import absolute
from orchestrator.spec.parts import BackboneSpec, InputContract

PREFIX = "clip:"
HUB = "hub:"
CONFIG = "open_clip_config.json"
TABLE_PATH = Path(__file__).with_name("clip_pretrained.json")

# Recommended references and what each is best for; order is that of listings.
BEST_FOR: dict[str, str] = {
    "clip:ViT-B-32/laion2b_s34b_b79k": "zero-shot on laptops, product categories",
    "clip:ViT-B-16/laion2b_s34b_b88k": "zero-shot with finer detail",
    "clip:ViT-L-14/laion2b_s32b_b82k": "the best zero-shot of the three",
    "clip:RN50-quickgelu/openai": "a convolutional tower",
}
# What a plain ViT's configuration may say; any other key makes it a tower of one stage.
_VIT_KEYS = frozenset(
    {
        "image_size",
        "layers",
        "width",
        "head_width",
        "mlp_ratio",
        "patch_size",
        "ls_init_value",
        "patch_dropout",
        "no_ln_pre",
        "pos_embed_type",
        "final_ln_after_pool",
        "pool_type",
        "act_kwargs",
        "norm_kwargs",
    }
)
_POOL_TYPES = ("tok", "avg")


def is_clip(name: str) -> bool:
    """Whether a backbone's name is a CLIP's."""
    return name.startswith(PREFIX)


def is_clip_folder(path: Path) -> bool:
    """Whether a folder looks like a CLIP's, as open_clip writes it."""
    return (path / CONFIG).is_file()


def parse_clip(reference: str, *, base: Path, weights: str = "default") -> BackboneSpec:
    """The CLIP that `reference` names, its files found where they are local.

    Args:
        reference: See the module.
        base: The folder that relative paths are relative to.
        weights: `default`, `none`, or the path of a file for an architecture.

    Raises:
        SpecError: It names none; the message says what is near.
        WeightsError: Its configuration cannot be had or read.
    """
    inner = reference.removeprefix(PREFIX)
    if inner.startswith(HUB):
        spec = BackboneSpec(name=PREFIX + inner, weights=weights)
    elif is_clip_folder(folder := Path(absolute(inner, base))):
        spec = BackboneSpec(name=PREFIX + folder.name, weights=weights, folder=str(folder))
    else:
        spec = _built_in(inner, weights, base)
    if (spec.folder or inner.startswith(HUB)) and weights not in ("default", "none"):
        raise SpecError(f"{reference} has its own weights. Leave weights out, or use none")
    clip_config(spec)
    return spec


def clip_facts(spec: BackboneSpec) -> BackboneFacts:
    """What is known of a CLIP's visual tower as a backbone.

    Raises:
        WeightsError: The configuration cannot be had.
    """
    model = clip_config(spec)["model_cfg"]
    vision, embed_dim = model["vision_cfg"], int(model["embed_dim"])
    if not can_be_cut(vision):
        n_stages, multi_scale = 1, 2 * embed_dim
        n_parameters = _whole_parameters(vision, embed_dim)
    elif isinstance(vision["layers"], list):
        n_stages, multi_scale = len(vision["layers"]), 120 * int(vision.get("width", 64))
        n_parameters = _resnet_parameters(vision, embed_dim)
    else:
        n_stages = int(vision["layers"])
        multi_scale = 2 * int(vision.get("width", 768)) * n_stages
        n_parameters = _vit_parameters(vision, embed_dim)
    return BackboneFacts(
        name=spec.name,
        library="open_clip",
        n_stages=n_stages,
        feature_width=embed_dim,
        multi_scale_width=multi_scale,
        n_parameters=n_parameters,
        input=clip_contract(spec),
        takes_adapters=False,  # the projections are one bare parameter
        best_for=BEST_FOR.get(spec.name, ""),
    )


def clip_config(spec: BackboneSpec) -> dict[str, Any]:
    """A CLIP's configuration: `model_cfg` and `preprocess_cfg`, as in an open_clip_config.json.

    Raises:
        WeightsError: It cannot be had or read.
    """
    content: dict[str, Any] = json.loads(_config_text(spec))
    return content


def clip_contract(spec: BackboneSpec) -> InputContract:
    """How images are prepared for a CLIP.

    Raises:
        WeightsError: In a way that is not supported.
    """
    config = clip_config(spec)
    preprocess = {**_PREPROCESS, **config.get("preprocess_cfg", {})}
    size = config["model_cfg"]["vision_cfg"].get("image_size", preprocess.get("size", 224))
    sides = {size} if isinstance(size, int) else set(size)
    try:
        if len(sides) != 1:
            raise ValueError(f"images of {size} pixels, which are not square")
        return InputContract(
            size=sides.pop(),
            crop_fraction=1.0,
            interpolation=preprocess["interpolation"],
            resize=preprocess["resize_mode"],
            mean=tuple(preprocess["mean"]),
            std=tuple(preprocess["std"]),
        )
    except (ValidationError, ValueError, TypeError) as err:
        raise WeightsError(
            f"{spec.name}: it wants its images prepared in a way that is not supported ({err})"
        ) from err


def n_context(spec: BackboneSpec) -> int:
    """Tokens of the longest prompt that a CLIP reads, the special ones included."""
    return int(clip_config(spec)["model_cfg"]["text_cfg"].get("context_length", 77))


@cache
def architectures() -> tuple[str, ...]:
    """The names of open_clip's architectures."""
    return tuple(sorted(path.stem for path in _configs().glob("*.json")))


def pretrained_tags(architecture: str) -> tuple[str, ...]:
    """The names of the pretrained weights that open_clip has for an architecture."""
    return tuple(_table()["tags"].get(architecture, ()))


def clip_references() -> tuple[str, ...]:
    """Every CLIP that open_clip has pretrained weights for; the recommended ones first."""
    found = [
        f"{PREFIX}{architecture}/{tag}"
        for architecture in architectures()
        for tag in pretrained_tags(architecture)
        if not _needs_quick_gelu(architecture, tag)
    ]
    return tuple(dict.fromkeys([*BEST_FOR, *found]))


def _needs_quick_gelu(architecture: str, tag: str) -> bool:
    """Whether weights were trained with another activation than the architecture has."""
    quick = bool(_row(architecture, tag)["quick_gelu"])
    return quick and not _architecture(architecture).get("quick_gelu")


def _built_in(inner: str, weights: str, base: Path) -> BackboneSpec:
    architecture, _, tag = inner.partition("/")
    known = architectures()
    if architecture not in known:
        raise SpecError(
            f"no CLIP {shown(inner)}.{nearest(architecture, known)} Use clip:ARCHITECTURE/"
            "PRETRAINED as open_clip lists them, clip:hub:OWNER/NAME, or a local folder with an "
            f"{CONFIG}"
        )
    tags = pretrained_tags(architecture)
    name = PREFIX + inner
    if not tag:
        if weights == "default":
            raise SpecError(
                f"{name} says no pretrained weights. Use one of "
                f"{listing(f'{name}/{t}' for t in tags) or 'a weights file'}, or give a file"
            )
        path = weights if weights == "none" else absolute(weights, base)
        if path != "none" and not Path(path).is_file():
            raise SpecError(f"no file {shown(path, most=300)}. Give open_clip's weights")
        return BackboneSpec(name=name, weights=path)
    if tag not in tags:
        raise SpecError(
            f"{architecture} has no pretrained weights {tag!r}.{nearest(tag, tags)} "
            f"It has {listing(tags) or 'none'}"
        )
    if weights not in ("default", "none"):
        raise SpecError(f"{name} names its weights already. Use clip:{architecture} with a file")
    if _needs_quick_gelu(architecture, tag):
        raise SpecError(
            f"{name} was trained with another activation than {architecture} has. Use "
            f"clip:{architecture}-quickgelu/{tag}"
        )
    return BackboneSpec(name=name, weights=weights)


@lru_cache(maxsize=64)
def _config_text(spec: BackboneSpec) -> str:
    inner = spec.name.removeprefix(PREFIX)
    if spec.folder is not None:
        return _read_config(Path(spec.folder) / CONFIG, spec.name)
    if inner.startswith(HUB):
        return _read_config(_downloaded_config(inner.removeprefix(HUB), spec.name), spec.name)
    architecture, _, tag = inner.partition("/")
    content = {
        "model_cfg": _architecture(architecture),
        "preprocess_cfg": _row(architecture, tag) if tag else {},
    }
    return json.dumps(content)


def _read_config(path: Path, name: str) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        model = content["model_cfg"]
        whole = {"embed_dim", "vision_cfg", "text_cfg"} <= model.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise WeightsError(f"{name}: {path} is no configuration of open_clip ({err!r})") from err
    if not whole:
        raise WeightsError(f"{name}: {path} lacks embed_dim, vision_cfg or text_cfg")
    return text


def _downloaded_config(hub_id: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(hub_id, CONFIG))
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as err:
        reason = (str(err) or type(err).__name__).splitlines()[0]
        raise WeightsError(
            f"{name}: cannot be had from the hub ({reason}). It must be a repository with an "
            f"{CONFIG}; without a network, give a local folder"
        ) from err


def can_be_cut(vision: Mapping[str, Any]) -> bool:
    """Whether a visual tower is a plain ViT or ResNet, whose blocks or layers are its stages.

    Any other (timm's towers, attentional pooling) is one stage.
    """
    layers = vision.get("layers")
    if vision.get("timm_model_name") or not isinstance(layers, int | list):
        return False
    if isinstance(layers, list):
        return len(layers) == 4
    plain = all(key in _VIT_KEYS for key, value in vision.items() if value)
    return layers >= 2 and plain and vision.get("pool_type", "tok") in _POOL_TYPES


def _whole_parameters(vision: Mapping[str, Any], embed_dim: int) -> int:
    """Of a tower that is one stage; the library's own count differs by little."""
    name = vision.get("timm_model_name")
    if not name:
        return _vit_parameters(vision, embed_dim)
    if not is_image_backbone(name):
        return 0
    trunk = facts_for(name)
    return trunk.n_parameters + trunk.feature_width * embed_dim


def _vit_parameters(vision: Mapping[str, Any], embed_dim: int) -> int:
    width, patch = int(vision.get("width", 768)), int(vision.get("patch_size", 16))
    inner = int(width * float(vision.get("mlp_ratio", 4.0)))
    n_patches = (int(vision.get("image_size", 224)) // patch) ** 2
    block = 4 * width * (width + 1) + width * inner * 2 + inner + width + 4 * width
    block += 2 * width if vision.get("ls_init_value") is not None else 0
    norms = 2 * width * (1 if vision.get("no_ln_pre") else 2)
    stem = 3 * patch * patch * width + width + (n_patches + 1) * width
    return stem + norms + int(vision["layers"]) * block + width * embed_dim


def _resnet_parameters(vision: Mapping[str, Any], embed_dim: int) -> int:
    width, half = int(vision.get("width", 64)), int(vision.get("width", 64)) // 2
    total = 27 * half + 9 * half * half + 9 * half * width + 2 * (half + half + width)
    inputs = width
    for number, n_blocks in enumerate(vision["layers"]):
        planes = width * 2**number
        outputs = 4 * planes
        total += inputs * outputs + 2 * outputs  # the first block's shortcut
        for _ in range(n_blocks):
            total += inputs * planes + 9 * planes * planes + planes * outputs
            total += 2 * (2 * planes + outputs)
            inputs = outputs
    side = int(vision.get("image_size", 224)) // 32
    total += (side * side + 1) * inputs + 3 * inputs * (inputs + 1)
    return total + inputs * embed_dim + embed_dim


@cache
def _configs() -> Path:
    """Where the installed open_clip keeps its architectures; it is not imported."""
    found = importlib.util.find_spec("open_clip")
    assert found is not None, "open_clip is not installed"
    assert found.origin is not None
    return Path(found.origin).parent / "model_configs"


@lru_cache(maxsize=64)
def _architecture_text(name: str) -> str:
    return (_configs() / f"{name}.json").read_text(encoding="utf-8")


def _architecture(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_architecture_text(name))
    return content


def _row(architecture: str, tag: str) -> dict[str, Any]:
    """What pretrained weights want: mean, std, interpolation, resize_mode, quick_gelu."""
    table = _table()
    values: list[Any] = table["wants"][table["tags"][architecture][tag]]
    return dict(zip(table["columns"], values, strict=True))


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE_PATH.read_text(encoding="utf-8"))
    return table


# What open_clip does where a configuration does not say.
_PREPROCESS: dict[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
