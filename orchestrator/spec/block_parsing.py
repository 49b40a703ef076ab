"""One search block, from what was written to its dimensions."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import Fault, SpecError, listing, nearest, shown
from orchestrator.spec.backbone_table import backbone_names, facts_for
from orchestrator.spec.fault_messages import as_faults, sentence, validated
from orchestrator.spec.locations import absolute
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.search_space import Block, Choice, Constant, Dimension, Range, is_number
from orchestrator.spec.strategy import STRATEGIES, StrategyParams

RANGE_KINDS = ("log", "uniform", "int")
MOST = 1e300  # no bound of a range is larger; infinities are not
FORMS = "a value, a list, {choice: […]}, {log: [a, b]}, {uniform: [a, b]} or {int: [a, b]}"

# The parameters that a StrategyParams checks against each other.
TOGETHER = (("accumulate", "batch_size"), ("stage_decay", "thirds"))


def common_parameters() -> set[str]:
    """Every parameter that some strategy has, the ones `defaults` may set."""
    return {name for cls in STRATEGIES.values() for name in _parameters(cls)}


def parse_block(
    raw: Any, *, defaults: Mapping[str, Any], key: str, base: Path, faults: list[Fault]
) -> Block | None:
    """The block that `raw` describes, or None with what is wrong added to `faults`.

    Args:
        raw: What stands under `search`.
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
    allowed = ["backbone", *_parameters(cls)]
    faults += [
        Fault(f"{key}.{k}", f"{name} has no such parameter.{nearest(k, allowed)}{_owner(k)}")
        for k in raw
        if k not in ("strategy", *allowed)
    ]
    dims: dict[str, Dimension] = {}
    backbone = _backbones(raw.get("backbone"), f"{key}.backbone", name, base, faults)
    if backbone is not None:
        dims["backbone"] = backbone
    for parameter in _parameters(cls):
        if parameter in raw:
            where, value = f"{key}.{parameter}", raw[parameter]
        elif parameter in defaults:
            where, value = f"defaults.{parameter}", defaults[parameter]
        else:
            continue
        dim = _dimension(cls, parameter, value, where, faults)
        if dim is not None:
            dims[parameter] = dim
    block = Block(strategy=name, dimensions=dims)
    if len(faults) == before:
        faults += _depth_faults(block, key) + _combination_faults(block, key)
    return block if len(faults) == before else None


def _parameters(cls: type[StrategyParams]) -> list[str]:
    return [name for name in cls.model_fields if name != "strategy"]


def _owner(parameter: str) -> str:
    owners = [name for name, cls in STRATEGIES.items() if parameter in _parameters(cls)]
    return f" It belongs to {listing(owners)}." if owners else ""


def _backbones(
    raw: Any, key: str, strategy: str, base: Path, faults: list[Fault]
) -> Constant | Choice | None:
    if raw is None:
        faults.append(Fault(key, "missing. Name one or more; `orchestrator backbones` lists them"))
        return None
    if isinstance(raw, Mapping) and set(raw) == {"choice"}:
        raw = raw["choice"]
    items = raw if isinstance(raw, list) else [raw]
    specs = []
    for n, item in enumerate(items):
        where = f"{key}[{n}]" if isinstance(raw, list) else key
        spec = _backbone(item, where, strategy, base, faults)
        if spec is not None:
            specs.append(spec.to_json())
    if not items:
        faults.append(Fault(key, "an empty list. Name at least one backbone"))
    if len(specs) != len(items) or not specs or _repeats(specs, key, faults):
        return None
    return Choice(values=tuple(specs)) if isinstance(raw, list) else Constant(value=specs[0])


def _backbone(
    item: Any, key: str, strategy: str, base: Path, faults: list[Fault]
) -> BackboneSpec | None:
    if not isinstance(item, str | Mapping):
        faults.append(
            Fault(key, f"{shown(item)} is no backbone. Use NAME or {{name: …, weights: …}}")
        )
        return None
    written = {"name": item} if isinstance(item, str) else item
    spec = validated(BackboneSpec, written, prefix=key, faults=faults)
    if spec is None:
        return None
    if spec.name not in set(backbone_names()):
        near = nearest(spec.name, backbone_names())
        faults.append(
            Fault(key, f"no backbone {shown(spec.name)}.{near} `orchestrator backbones` lists them")
        )
        return None
    if strategy == "scratch":
        if spec.weights not in ("default", "none"):
            faults.append(Fault(key, f"scratch starts from weights: none, not {spec.weights!r}"))
        return spec.model_copy(update={"weights": "none"})
    if spec.weights in ("default", "none") or spec.weights.startswith("hub:"):
        return spec
    try:
        path = absolute(spec.weights, base)
    except SpecError as err:
        faults.append(Fault(f"{key}.weights", str(err)))
        return None
    if not os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises on a name that is too long)
        told = f"no file {shown(path, most=300)}. Allowed: default, none, a file, or hub:<id>"
        faults.append(Fault(f"{key}.weights", told))
        return None
    return spec.model_copy(update={"weights": path})


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
        stages = facts_for(spec["name"]).n_stages
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
            values = vetted | dict(zip(dims, extremes, strict=True))
            try:
                block.params_class.model_validate(values)
            except ValidationError as err:
                return as_faults(err, block.params_class, prefix=key)
    return []
