"""One search block, from what was written to its dimensions."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import Fault, SpecError, WeightsError, listing, nearest, shown
from orchestrator.spec.backbone_table import backbone_names, is_image_backbone
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.fault_messages import as_faults, sentence, validated
from orchestrator.spec.locations import absolute
from orchestrator.spec.parts import BackboneSpec, Modality
from orchestrator.spec.search_space import Block, Choice, Constant, Dimension, Range, is_number
from orchestrator.spec.strategy import ONLY_FOR, STRATEGIES, StrategyParams, with_defaults
from orchestrator.spec.text_encoders import HUB_ID, is_encoder_folder

RANGE_KINDS = ("log", "uniform", "int")
MOST = 1e300  # no bound of a range is larger; infinities are not
FORMS = "a value, a list, {choice: […]}, {log: [a, b]}, {uniform: [a, b]} or {int: [a, b]}"

# The parameters that a StrategyParams checks against each other.
TOGETHER = (("accumulate", "batch_size"), ("stage_decay", "thirds"))


def common_parameters(modality: Modality) -> set[str]:
    """Every parameter that some strategy has for a kind of input, the ones `defaults` may set."""
    return {name for cls in STRATEGIES.values() for name in _parameters(cls, modality)}


def no_such_parameter(name: object, allowed: Collection[str], modality: Modality) -> str:
    """Why `name` is refused, to follow the name of a strategy."""
    owner = ONLY_FOR.get(str(name), modality)
    if owner != modality:
        return f"has it for {modality} tasks: {name} is for {owner} tasks. Leave it out"
    return f"has this parameter.{nearest(name, allowed)}"


def parse_block(
    raw: Any,
    *,
    modality: Modality,
    defaults: Mapping[str, Any],
    key: str,
    base: Path,
    faults: list[Fault],
) -> Block | None:
    """The block that `raw` describes, or None with what is wrong added to `faults`.

    Args:
        raw: What stands under `search`.
        modality: What the task's inputs are.
        defaults: The spec's `defaults`: parameters of every block that has them.
        key: Where it stands, for messages.
        base: The folder that weights paths are relative to.
        faults: Collects what is wrong.
    """
    if not isinstance(raw, Mapping):
        faults.append(
            Fault(key, f"{shown(raw)} is no block. Expected `strategy:` and its parameters")
        )
        return None
    name = raw.get("strategy")
    if not isinstance(name, str) or name not in STRATEGIES:
        told = f"{shown(name)} is not one of" if name is not None else "missing. One of"
        hint = nearest(name, STRATEGIES) if name is not None else ""
        faults.append(Fault(f"{key}.strategy", f"{told} {listing(STRATEGIES)}.{hint}"))
        return None
    cls, before = STRATEGIES[name], len(faults)
    allowed = ["backbone", *_parameters(cls, modality)]
    faults += [
        Fault(f"{key}.{k}", _unknown(name, k, allowed, modality))
        for k in raw
        if k not in ("strategy", *allowed)
    ]
    dims: dict[str, Dimension] = {}
    written = _Written(f"{key}.backbone", name, modality, base)
    backbone = _backbones(raw.get("backbone"), written, faults)
    if backbone is not None:
        dims["backbone"] = backbone
    for parameter in _parameters(cls, modality):
        if parameter in raw:
            where, value = f"{key}.{parameter}", raw[parameter]
        elif parameter in defaults:
            where, value = f"defaults.{parameter}", defaults[parameter]
        else:
            continue
        dim = _dimension(cls, parameter, value, where, faults)
        if dim is not None and modality == "image" and "mean" in dim.extremes:
            faults.append(Fault(where, "mean is for text tasks. Use last or multi-scale"))
        elif dim is not None:
            dims[parameter] = dim
    block = Block(strategy=name, dimensions=dims, modality=modality)
    if len(faults) == before:
        faults += _depth_faults(block, key) + _combination_faults(block, key)
    return block if len(faults) == before else None


def _parameters(cls: type[StrategyParams], modality: Modality) -> list[str]:
    return [
        name
        for name in cls.model_fields
        if name != "strategy" and ONLY_FOR.get(name, modality) == modality
    ]


def _unknown(strategy: str, name: object, allowed: Sequence[str], modality: Modality) -> str:
    if ONLY_FOR.get(str(name), modality) != modality:
        return f"{strategy} {no_such_parameter(name, allowed, modality)}"
    owners = [s for s, cls in STRATEGIES.items() if name in _parameters(cls, modality)]
    belongs = f" It belongs to {listing(owners)}." if owners else ""
    return f"{strategy} has no such parameter.{nearest(name, allowed)}{belongs}"


@dataclass(frozen=True)
class _Written:
    """Where a backbone stands in the spec: its key, and what it must fit."""

    key: str
    strategy: str
    modality: Modality
    base: Path


def _backbones(raw: Any, at: _Written, faults: list[Fault]) -> Constant | Choice | None:
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
    if len(specs) != len(items) or not specs or _repeats(specs, at.key, faults):
        return None
    return Choice(values=tuple(specs)) if isinstance(raw, list) else Constant(value=specs[0])


def _backbone(item: Any, at: _Written, faults: list[Fault]) -> BackboneSpec | None:
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


def _image(spec: BackboneSpec, at: _Written, faults: list[Fault]) -> BackboneSpec | None:
    """The backbone of the table that `spec` names, its weights file found."""
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


def _encoder(spec: BackboneSpec, at: _Written, faults: list[Fault]) -> BackboneSpec | None:
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
        spec = spec.model_copy(update={"name": path.name, "folder": str(path)})
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


def _dimension(
    cls: type[StrategyParams], name: str, raw: Any, key: str, faults: list[Fault]
) -> Dimension | None:
    """A parameter's dimension, each of its extreme values checked against the field."""
    field = _field(cls, name)
    dim: Dimension | None
    if isinstance(raw, Mapping):
        dim = _explicit(raw, key, faults)
    elif isinstance(raw, list) and not (
        field.takes_lists and not any(isinstance(v, list) for v in raw)
    ):
        dim = _choice(raw, key, faults)
    else:
        dim = Constant(value=raw)
    if dim is None:
        return None
    if isinstance(dim, Range) and field.words:
        faults.append(Fault(key, f"no range, but some of {listing(field.words)}. List them"))
        return None
    wrong = [told for value in dim.extremes if (told := _refusal(field, value)) is not None]
    faults += [Fault(key, told) for told in wrong]
    return None if wrong else dim


def _explicit(raw: Mapping[str, Any], key: str, faults: list[Fault]) -> Choice | Range | None:
    kind = next(iter(raw), None)
    if len(raw) != 1 or kind not in ("choice", *RANGE_KINDS):
        near = nearest(kind, ("choice", *RANGE_KINDS))
        faults.append(Fault(key, f"{shown(dict(raw))} is not a form of search. Use {FORMS}.{near}"))
        return None
    body = raw[kind]
    if kind == "choice":
        return _choice(body, key, faults)
    numbers = isinstance(body, list) and all(is_number(v) and abs(v) < MOST for v in body)
    if not numbers or len(body) != 2 or body[0] >= body[1]:
        told = f"{{{kind}: {shown(body)}}} needs two numbers, the lower one first"
        faults.append(Fault(key, told))
        return None
    if kind == "log" and body[0] <= 0:
        faults.append(Fault(key, f"{{log: {body}}} must start above 0"))
        return None
    if kind == "int" and any(isinstance(v, float) for v in body):
        faults.append(Fault(key, f"{{int: {body}}} needs whole numbers"))
        return None
    return Range(kind=kind, low=body[0], high=body[1])


def _choice(body: Any, key: str, faults: list[Fault]) -> Choice | None:
    if not isinstance(body, list) or not body:
        faults.append(Fault(key, f"{shown(body)} is no list of at least one value"))
        return None
    return None if _repeats(body, key, faults) else Choice(values=tuple(body))


def _repeats(values: Sequence[Any], key: str, faults: list[Fault]) -> bool:
    """Whether a value is listed twice, which is told."""
    counts = Counter(json.dumps(v, default=str) for v in values)
    repeated = [text for text, count in counts.items() if count > 1]
    if repeated:
        faults.append(Fault(key, f"{listing(repeated)} appears twice. Keep one"))
    return bool(repeated)


@dataclass(frozen=True)
class _Field:
    """What a parameter takes.

    Attributes:
        adapter: Its validator.
        takes_lists: Whether its values are themselves lists.
        words: The allowed values, where they are listed; else empty.
    """

    adapter: TypeAdapter[Any]
    takes_lists: bool
    words: tuple[Any, ...]


@cache
def _field(cls: type[StrategyParams], name: str) -> _Field:
    """What the parameter `name` takes."""
    field = cls.model_fields[name]
    annotation: Any = field.annotation
    if field.metadata:
        annotation = Annotated[annotation, *field.metadata]
    members = getattr(field.annotation, "__args__", ())
    takes_lists = any(get_origin(m) is tuple for m in (field.annotation, *members))
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return _Field(TypeAdapter(annotation), takes_lists, words)


def _refusal(field: _Field, value: Any) -> str | None:
    """Why the field does not take `value`, or None when it does."""
    if field.words and not any(value == w and type(value) is type(w) for w in field.words):
        near = nearest(value, [str(word) for word in field.words])
        return f"{shown(value)} is not one of {listing(field.words)}.{near}"
    try:
        field.adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as err:
        errors = [e for e in err.errors() if e["type"] != "none_required"] or err.errors()
        if errors[0]["type"] == "missing":
            return f"{shown(value)} has too few values"
        return sentence({**errors[0], "input": value})
    except (TypeError, ValueError):
        return f"{shown(value)} is no value of a parameter"
    return None


def _depth_faults(block: Block, key: str) -> list[Fault]:
    """`unfreeze` deeper than a backbone has stages."""
    depth = block.dimensions.get("unfreeze")
    if depth is None:
        return []
    deepest = max(depth.extremes)
    faults = []
    for spec in block.dimensions["backbone"].extremes:
        stages = facts_of(BackboneSpec.model_validate(spec)).n_stages
        if deepest >= stages:
            faults.append(
                Fault(
                    f"{key}.unfreeze",
                    f"{deepest} is {'more than' if deepest > stages else 'all that'} "
                    f"{spec['name']} has ({stages} stages). Use 1–{stages - 1}, "
                    "or strategy: full",
                )
            )
    return faults


def _combination_faults(block: Block, key: str) -> list[Fault]:
    """Parameters that are each allowed and that the search could not have together."""
    vetted = {k: v for k, v in block.vetted().items() if k != "backbone"}
    for names in TOGETHER:
        dims = {name: block.dimensions[name] for name in names if name in block.dimensions}
        for extremes in itertools.product(*(dim.extremes for dim in dims.values())):
            given = vetted | dict(zip(dims, extremes, strict=True))
            values = with_defaults(block.strategy, block.modality, given)
            try:
                block.params_class.model_validate(values)
            except ValidationError as err:
                return as_faults(err, block.params_class, prefix=key)
    return []
