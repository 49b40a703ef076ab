"""The backbones of a search block, from what was written to where their weights lie."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import Fault, SpecError, WeightsError, listing, nearest, shown
from orchestrator.spec.backbone_table import backbone_names, is_image_backbone
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.clip_models import is_clip, is_clip_folder, parse_clip
from orchestrator.spec.fault_messages import validated
from orchestrator.spec.locations import absolute
from orchestrator.spec.parts import BackboneSpec, Modality
from orchestrator.spec.search_space import Choice, Constant
from orchestrator.spec.strategy import DOMAIN_ADAPTIVE
from orchestrator.spec.text_encoders import HUB_ID, is_encoder_folder


@dataclass(frozen=True)
class Written:
    """Where a backbone stands in the spec: its key, and what it must fit."""

    key: str
    strategy: str
    modality: Modality
    base: Path


def parse_backbones(raw: Any, at: Written, faults: list[Fault]) -> Constant | Choice | None:
    """The backbones that `raw` names, or None with what is wrong added to `faults`."""
    if raw is None:
        faults.append(
            Fault(at.key, "missing. Name one or more; `orchestrator backbones` lists them")
        )
        return None
    if isinstance(raw, Mapping) and set(raw) == {"choice"}:
        raw = raw["choice"]
    items = raw if isinstance(raw, list) else [raw]
    specs = []
    for n, item in enumerate(items):
        where = replace(at, key=f"{at.key}[{n}]") if isinstance(raw, list) else at
        spec = _backbone(item, where, faults)
        if spec is not None:
            specs.append(spec.model_dump(exclude_none=True))
    if not items:
        faults.append(Fault(at.key, "an empty list. Name at least one backbone"))
    if len(specs) != len(items) or not specs or repeats(specs, at.key, faults):
        return None
    return Choice(values=tuple(specs)) if isinstance(raw, list) else Constant(value=specs[0])


def _backbone(item: Any, at: Written, faults: list[Fault]) -> BackboneSpec | None:
    if not isinstance(item, str | Mapping):
        faults.append(
            Fault(at.key, f"{shown(item)} is no backbone. Use NAME or {{name: …, weights: …}}")
        )
        return None
    written = {"name": item} if isinstance(item, str) else item
    spec = validated(BackboneSpec, written, prefix=at.key, faults=faults)
    if spec is None:
        return None
    before = len(faults)
    found = _encoder(spec, at, faults) if at.modality == "text" else _image(spec, at, faults)
    if found is None or len(faults) > before:
        return None
    return found.model_copy(update={"weights": "none"}) if at.strategy == "scratch" else found


def _image(spec: BackboneSpec, at: Written, faults: list[Fault]) -> BackboneSpec | None:
    """The backbone that `spec` names, its weights file found: one of the table, or a CLIP."""
    if is_clip(spec.name) or (not is_image_backbone(spec.name) and _is_clip_place(spec, at)):
        return _clip(spec, at, faults)
    if spec.folder is not None:
        faults.append(Fault(f"{at.key}.folder", "is for text encoders. Use weights: PATH"))
        return None
    if not is_image_backbone(spec.name):
        near = nearest(spec.name, backbone_names())
        faults.append(
            Fault(
                at.key,
                f"no backbone {shown(spec.name)}.{near} `orchestrator backbones` lists them",
            )
        )
        return None
    if spec.weights in ("default", "none"):
        return spec
    if at.strategy == "scratch":
        faults.append(Fault(at.key, f"scratch starts from weights: none, not {spec.weights!r}"))
        return None
    if spec.weights.startswith("hub:"):
        return spec
    try:
        path = absolute(spec.weights, at.base)
    except SpecError as err:
        faults.append(Fault(f"{at.key}.weights", str(err)))
        return None
    if not os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises on a name that is too long)
        told = f"no file {shown(path, most=300)}. Allowed: default, none, a file, or hub:<id>"
        faults.append(Fault(f"{at.key}.weights", told))
        return None
    return spec.model_copy(update={"weights": path})


def _is_clip_place(spec: BackboneSpec, at: Written) -> bool:
    try:
        return is_clip_folder(Path(absolute(spec.name, at.base)))
    except SpecError:
        return False


def _clip(spec: BackboneSpec, at: Written, faults: list[Fault]) -> BackboneSpec | None:
    """The CLIP that `spec` names: open_clip's, one on the hub, or a local folder."""
    if at.strategy == DOMAIN_ADAPTIVE:
        told = f"{spec.name}: pretraining a CLIP's images alone would part them from its texts"
        faults.append(Fault(at.key, f"{told}. Use partial or full, or another backbone"))
        return None
    weights = "none" if at.strategy == "scratch" else spec.weights
    try:
        found = parse_clip(spec.folder or spec.name, base=at.base, weights=weights)
        facts_of(found)
    except (SpecError, WeightsError) as err:
        faults.append(Fault(at.key, str(err)))
        return None
    return found


def _encoder(spec: BackboneSpec, at: Written, faults: list[Fault]) -> BackboneSpec | None:
    """The text encoder that `spec` names: a local folder, or an id on the hub."""
    if is_image_backbone(spec.name):
        told = f"{spec.name} is for images. Name an encoder on the hub, or a local folder"
        faults.append(Fault(at.key, told))
        return None
    if spec.weights not in ("default", "none"):
        told = (
            f"{shown(spec.weights)} is not one of default, none. Name a folder to use its weights"
        )
        faults.append(Fault(f"{at.key}.weights", told))
        return None
    place = spec.folder if spec.folder is not None else spec.name
    try:
        path = Path(absolute(place, at.base))
    except SpecError as err:
        faults.append(Fault(at.key, str(err)))
        return None
    if is_encoder_folder(path):
        name = path.name if spec.folder is None else spec.name
        spec = spec.model_copy(update={"name": name, "folder": str(path)})
    elif spec.folder is not None or not HUB_ID.fullmatch(spec.name) or path.exists():
        told = (
            f"no encoder {shown(place, most=300)}. Name one on the hub, e.g. bert-base-uncased, "
            "or a local folder with its config.json, tokenizer and weights"
        )
        faults.append(Fault(at.key, told))
        return None
    try:
        facts_of(spec)
    except WeightsError as err:
        faults.append(Fault(at.key, str(err)))
        return None
    return spec


def repeats(values: Sequence[Any], key: str, faults: list[Fault]) -> bool:
    """Whether a value is listed twice, which is told."""
    counts = Counter(json.dumps(v, default=str) for v in values)
    repeated = [text for text, count in counts.items() if count > 1]
    if repeated:
        faults.append(Fault(key, f"{listing(repeated)} appears twice. Keep one"))
    return bool(repeated)
