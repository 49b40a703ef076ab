"""One search block, from what was written to its dimensions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_origin

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import Fault, listing, nearest
from orchestrator.spec.backbone_table import backbone_names, facts_for
from orchestrator.spec.fault_messages import as_faults, sentence
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.search_space import Block, Choice, Constant, Dimension, Range
from orchestrator.spec.strategy import STRATEGIES, StrategyParams

RANGE_KINDS = ("log", "uniform", "int")
FORMS = "a value, a list, {choice: […]}, {log: [a, b]}, {uniform: [a, b]} or {int: [a, b]}"


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
        faults.append(Fault(key, f"{raw!r} is no block. Expected `strategy:` and its parameters"))
        return None
    name = raw.get("strategy")
    if not isinstance(name, str) or name not in STRATEGIES:
        told = f"{name!r} is not one of" if name is not None else "missing. One of"
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
        faults.append(
            Fault(key, "missing. Name one or more; `orchestrator backbones` lists them")
        )
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
    if len(specs) != len(items) or not specs:
        return None
    return Choice(values=tuple(specs)) if isinstance(raw, list) else Constant(value=specs[0])


def _backbone(
    item: Any, key: str, strategy: str, base: Path, faults: list[Fault]
) -> BackboneSpec | None:
    try:
        spec = BackboneSpec.model_validate({"name": item} if isinstance(item, str) else item)
    except ValidationError as err:
        faults.extend(as_faults(err, BackboneSpec, prefix=key))
        return None
    if spec.name not in set(backbone_names()):
        near = nearest(spec.name, backbone_names())
        faults.append(
            Fault(key, f"no backbone {spec.name!r}.{near} `orchestrator backbones` lists them")
        )
        return None
    if strategy == "scratch":
        if spec.weights not in ("default", "none"):
            faults.append(Fault(key, f"scratch starts from weights: none, not {spec.weights!r}"))
        return spec.model_copy(update={"weights": "none"})
    if spec.weights in ("default", "none") or spec.weights.startswith("hub:"):
        return spec
    path = (base / Path(spec.weights).expanduser()).resolve()
    if not path.is_file():
        faults.append(
            Fault(
                f"{key}.weights",
                f"no file {str(path)!r}. Allowed: default, none, a file, or hub:<id>",
            )
        )
        return None
    return spec.model_copy(update={"weights": str(path)})


def _dimension(
    cls: type[StrategyParams], name: str, raw: Any, key: str, faults: list[Fault]
) -> Dimension | None:
    """A parameter's dimension, each of its extreme values checked against the field."""
    adapter, takes_lists = _adapter(cls, name)
    dim: Dimension | None
    if isinstance(raw, Mapping):
        dim = _explicit(raw, key, faults)
    elif isinstance(raw, list) and not (takes_lists and not any(isinstance(v, list) for v in raw)):
        dim = _choice(raw, key, faults)
    else:
        dim = Constant(value=raw)
    if dim is None:
        return None
    wrong = [told for value in dim.extremes if (told := _refusal(adapter, value)) is not None]
    faults += [Fault(key, told) for told in wrong]
    return None if wrong else dim


def _explicit(raw: Mapping[str, Any], key: str, faults: list[Fault]) -> Choice | Range | None:
    kind = next(iter(raw), None)
    if len(raw) != 1 or kind not in ("choice", *RANGE_KINDS):
        near = nearest(kind, ("choice", *RANGE_KINDS))
        faults.append(Fault(key, f"{dict(raw)!r} is not a form of search. Use {FORMS}.{near}"))
        return None
    body = raw[kind]
    if kind == "choice":
        return _choice(body, key, faults)
    numbers = isinstance(body, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in body
    )
    if not numbers or len(body) != 2 or body[0] >= body[1]:
        faults.append(Fault(key, f"{{{kind}: {body}}} needs two numbers, the lower one first"))
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
        faults.append(Fault(key, f"{body!r} is no list of at least one value"))
        return None
    texts = [json.dumps(v, sort_keys=True, default=str) for v in body]
    repeated = sorted({t for t in texts if texts.count(t) > 1})
    if repeated:
        faults.append(Fault(key, f"{listing(repeated)} appears twice. Keep one"))
        return None
    return Choice(values=tuple(body))


@cache
def _adapter(cls: type[StrategyParams], name: str) -> tuple[TypeAdapter[Any], bool]:
    """The field's validator, and whether its values are themselves lists."""
    field = cls.model_fields[name]
    annotation: Any = field.annotation
    if field.metadata:
        annotation = Annotated[annotation, *field.metadata]
    members = getattr(field.annotation, "__args__", ())
    takes_lists = any(get_origin(m) is tuple for m in (field.annotation, *members))
    return TypeAdapter(annotation), takes_lists


def _refusal(adapter: TypeAdapter[Any], value: Any) -> str | None:
    """Why the field does not take `value`, or None when it does."""
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as err:
        errors = [e for e in err.errors() if e["type"] != "none_required"] or err.errors()
        return sentence({**errors[0], "input": value})
    except (TypeError, ValueError):
        return f"{value!r} is no value of a parameter"
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
    """Parameters that are each allowed and together are not."""
    values = {k: v for k, v in block.vetted().items() if k != "backbone"}
    try:
        block.params_class.model_validate(values)
    except ValidationError as err:
        return as_faults(err, block.params_class, prefix=key)
    return []
