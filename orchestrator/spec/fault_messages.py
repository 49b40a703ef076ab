"""pydantic's errors as sentences about the value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.errors import Fault, listing, nearest


def as_faults(err: ValidationError, model: type[BaseModel] | None, *, prefix: str) -> list[Fault]:
    """One Fault for each key that `err` complains of.

    Args:
        err: What pydantic raised.
        model: The class that was validated, for its allowed keys.
        prefix: The key of the section.
    """
    faults: dict[str, Fault] = {}
    for item in err.errors():
        key = _key(prefix, item["loc"])
        faults.setdefault(key, Fault(key, sentence(item, model)))
    return list(faults.values())


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
            return f"{value!r} is not one of {listing(words)}.{nearest(value, words)}"
        case "value_error":
            return str(context["error"])
        case _:
            message = str(item["msg"])
            for start in ("Input should be ", "Value should be "):
                message = message.replace(start, "must be ")
            return f"{value!r} {message}"


def _key(prefix: str, location: tuple[int | str, ...]) -> str:
    """`search[1].unfreeze` from its parts; the names of union members are left out."""
    key = prefix
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
        elif part.isidentifier() and not part[0].isupper() and part not in {"float", "int", "str"}:
            key += f".{part}" if key else part
    return key
