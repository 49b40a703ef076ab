"""Generates the table of backbones: `python -m orchestrator.models.backbone_facts`.

Every model is built on the meta device (no memory, no weights), split, and admitted only if its
stages composed in order are, operation by operation, what the library computes. Minutes for all of
timm.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from orchestrator.models.adapters import takes_adapters
from orchestrator.models.backbone import Backbone
from orchestrator.models.expression import expression_of
from orchestrator.models.library_model import library_model, split_model, torchvision_name
from orchestrator.models.split import UnsupportedFamilyError
from orchestrator.spec.backbone_table import LISTED, TABLE_PATH, library_of
from orchestrator.spec.parts import BackboneSpec, InputContract

COLUMNS = (
    "n_stages",
    "feature_width",
    "multi_scale_width",
    "n_parameters",
    "size",
    "crop_fraction",
    "interpolation",
    "mean",
    "std",
    "takes_adapters",
)
Row = list[Any]


def facts_row(name: str) -> Row:
    """The row of one backbone, measured on the library's model.

    Raises:
        UnsupportedFamilyError: It cannot be split into at least two stages that are proved equal to
            the library's own computation, or needs input other than square RGB images.
    """
    with torch.device("meta"):
        model = library_model(name, seed=0)
    contract = input_contract(name, model)
    backbone = Backbone(
        split_model(model, library_of(name)),
        spec=BackboneSpec(name=name, weights="none"),
        contract=contract,
        library=model,
    )
    if backbone.n_stages < 2:
        raise UnsupportedFamilyError("fewer than two stages")
    if library_of(name) != "orchestrator" and not same_computation(backbone, model):
        raise UnsupportedFamilyError("stages in order are not what the library computes")
    return [
        backbone.n_stages,
        backbone.feature_width("last"),
        backbone.feature_width("multi-scale"),
        sum(parameter.numel() for parameter in backbone.parameters()),
        contract.size,
        round(contract.crop_fraction, 6),
        contract.interpolation,
        list(contract.mean),
        list(contract.std),
        takes_adapters(backbone),
    ]


def input_contract(name: str, model: nn.Module) -> InputContract:
    """How the library prepares images for its default weights of this backbone.

    Raises:
        UnsupportedFamilyError: Images that are not square, or not RGB.
    """
    if library_of(name) == "timm":
        return _timm_contract(model)
    trunk = "resnet50" if library_of(name) == "orchestrator" else torchvision_name(name)
    transforms = torchvision.models.get_model_weights(trunk).DEFAULT.transforms()
    size = transforms.crop_size[0]
    return InputContract(
        size=size,
        crop_fraction=size / transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _timm_contract(model: Any) -> InputContract:
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise UnsupportedFamilyError(f"input of shape {config['input_size']}")
    return InputContract(
        size=height,
        crop_fraction=config["crop_pct"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def same_computation(backbone: Backbone, model: nn.Module) -> bool:
    """Whether a backbone's features are, by operations, the library's input to its classifier."""
    size = backbone.input.size
    images = torch.empty(2, 3, size, size, device=next(model.parameters()).device)
    leaves = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    expected = expression_of(library_features(model), images, leaves)
    return expression_of(backbone, images, leaves) == expected


def library_features(model: Any) -> Callable[[Tensor], Tensor]:
    """The library's own way from images to what its classifier sees, in eval mode."""
    model.eval()
    if hasattr(model, "forward_head"):
        return lambda images: model.forward_head(model.forward_features(images), pre_logits=True)
    return _without_classifier(model)


def _without_classifier(model: Any) -> Callable[[Tensor], Tensor]:
    """torchvision's forward with its last linear layer taken out, by a hook."""
    linear = [child for child in model.modules() if isinstance(child, nn.Linear)]

    def compute(images: Tensor) -> Tensor:
        if not linear:
            out: Tensor = model(images)
            return out
        seen: list[Tensor] = []
        handle = linear[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(images)
        handle.remove()
        return seen[0]

    return compute


def row_or_reason(name: str) -> Row | str:
    """The row of one backbone, or why it has none."""
    try:
        return facts_row(name)
    except Exception as err:  # noqa: BLE001 - whatever a library raises, the name is left out
        return f"{type(err).__name__}: {str(err).strip()}"


def table_text(rows: dict[str, Row]) -> str:
    """The table as JSON, one line a backbone."""
    versions = {"timm": timm.__version__, "torchvision": torchvision.__version__}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    return (
        f'{{"generated_from": {json.dumps(versions)},\n'
        f'"columns": {json.dumps(COLUMNS)},\n'
        f'"backbones": {{\n{lines}\n}}}}\n'
    )


def main() -> None:
    """Writes the table, and on stderr what was left out and why."""
    names = (*LISTED, *(name for name in timm.list_models() if name not in LISTED))
    with multiprocessing.get_context("spawn").Pool() as pool:
        found = dict(zip(names, pool.imap(row_or_reason, names, chunksize=8), strict=True))
    rows = {name: row for name, row in found.items() if not isinstance(row, str)}
    TABLE_PATH.write_text(table_text(rows), encoding="utf-8")
    for name, row in found.items():
        if isinstance(row, str):
            sys.stderr.write(f"{name}: {row}\n")
    sys.stderr.write(f"{len(rows)} backbones, {len(found) - len(rows)} left out\n")


if __name__ == "__main__":
    main()
