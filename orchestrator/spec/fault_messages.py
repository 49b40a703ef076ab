"""pydantic's errors as sentences about the value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.errors import Fault, listing, nearest, shown

ModelT = TypeVar("ModelT", bound=BaseModel)

_UNION_MEMBERS = frozenset({"float", "int", "str"})


def validated(
    model: type[ModelT], value: object, *, prefix: str, faults: list[Fault]
) -> ModelT | None:
    """`value` as a `model`, or None with what is wrong added to `faults`.

    Validated as strict JSON, so that `true` is no number and `"16"` no count.
    """
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as err:
        faults.extend(as_faults(err, model, prefix=prefix))
    except (TypeError, ValueError):
        faults.append(Fault(prefix, f"{shown(value)} holds something that YAML cannot say"))
    return None


def as_faults(err: ValidationError, model: type[BaseModel] | None, *, prefix: str) -> list[Fault]:
    """One Fault for each key that `err` complains of.

    Args:
        err: What pydantic raised.
        model: The class that was validated, for its allowed keys.
        prefix: The key of the section.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for item in err.errors():
        found.setdefault(_key(prefix, item), []).append(item)
    return [
        Fault(key, _union_sentence(items, model))
        for key, items in found.items()
        # Where one member of a union got further into the value, it is the one that was meant.
        if not any(other.startswith((f"{key}.", f"{key}[")) for other in found)
    ]


def _union_sentence(items: Sequence[Mapping[str, Any]], model: type[BaseModel] | None) -> str:
    """What all members of a union say about one value; a field that is no union has one."""
    told = next((item for item in items if item["type"] == "value_error"), items[0])
    first = sentence(told, model)
    if told["type"] == "value_error":
        return first
    others = dict.fromkeys(sentence(item, model).partition(" must be ")[2] for item in items[1:])
    return " or ".join([first, *(other for other in others if other)])


def sentence(item: Mapping[str, Any], model: type[BaseModel] | None = None) -> str:
    """What is wrong with the value, what is allowed, and the nearest match."""
    value, context = item["input"], item.get("ctx", {})
    match item["type"]:
        case "extra_forbidden":
            allowed = list(model.model_fields) if model else []
            return f"unknown key. Allowed: {listing(allowed)}.{nearest(item['loc'][-1], allowed)}"
        case "missing":
            return "missing"
        case "literal_error":
            words = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
            return f"{shown(value)} is not one of {listing(words)}.{nearest(value, words)}"
        case "value_error":
            return str(context["error"])
        case _:
            message = str(item["msg"])
            for start in ("Input should be ", "Value should be "):
                message = message.replace(start, "must be ")
            return f"{shown(value)} {message}"


def _key(prefix: str, item: Mapping[str, Any]) -> str:
    """`search[1].unfreeze` from its parts; the names of union members are left out."""
    key, location = prefix, item["loc"]
    for n, part in enumerate(location):
        if isinstance(part, int):
            key += f"[{part}]"
            continue
        written = n == len(location) - 1 and item["type"] in ("extra_forbidden", "missing")
        plain = part.isidentifier() and not part[0].isupper() and part not in _UNION_MEMBERS
        if written or plain:
            key += f".{part}" if key else part
    return key
