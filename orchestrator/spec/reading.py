"""What people write: YAML read safely, and `--set key=value` laid over it."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import SpecError

MAX_SPEC_BYTES = 1 << 20
MAX_DIGITS = 300


class _Refused(yaml.YAMLError):
    """YAML that a spec may not use; the message names the line."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (`no` is text, `1e-4` a number), no aliases, tags or repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = yaml.SafeLoader.peek_event(self)
        line = event.start_mark.line + 1
        if isinstance(event, yaml.events.AliasEvent):
            raise _Refused(f"line {line}: aliases (*name) are not read. Repeat the value")
        if getattr(event, "tag", None) is not None:
            raise _Refused(f"line {line}: tags ({event.tag}) are not read. Write the plain value")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise _Refused(f"line {line}: {key!r} appears twice. Keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_number(self, node: Any) -> int | float:
        """Decimal, whatever zeros it starts with (YAML 1.1 reads 010 as octal)."""
        line, text = node.start_mark.line + 1, str(node.value)
        if len(text) > MAX_DIGITS:
            raise _Refused(f"line {line}: a number of {len(text)} digits is not read")
        number = int(text) if node.tag.endswith(":int") else float(text)
        if math.isinf(float(number)):
            raise _Refused(f"line {line}: {text} is too large for a number")
        return number


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|false|False)$", "tTfF"),
    ("null", r"^(?:null|Null|~|)$", ["n", "N", "~", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def read_yaml(text: str, *, source: str = "spec") -> Any:
    """Plain data from YAML text.

    Raises:
        SpecError: The text is not YAML, or uses aliases, tags or repeated keys.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except _Refused as err:
        raise SpecError(f"{source}, {err}") from err
    except RecursionError as err:
        raise SpecError(f"{source} is nested too deeply for a spec") from err
    except yaml.YAMLError as err:
        raise SpecError(f"{source} is not YAML: {err}") from err


def read_spec_file(path: Path) -> Any:
    """Plain data from a YAML file.

    Raises:
        SpecError: The file is missing, unreadable, larger than 1 MiB, or not YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SPEC_BYTES + 1)
        if len(content) > MAX_SPEC_BYTES:
            raise SpecError(f"{path} is larger than a spec may be (1 MiB)")
        text = content.decode("utf-8")
    except FileNotFoundError as err:
        raise SpecError(f"{path}: no such file. `orchestrator init DATA` writes a spec") from err
    except (OSError, UnicodeDecodeError) as err:
        raise SpecError(f"{path}: cannot be read as text ({err})") from err
    return read_yaml(text, source=str(path))


def with_overrides(raw: Any, overrides: Iterable[str]) -> Any:
    """`raw` with each `key=value` laid over it; the value is parsed as YAML.

    Keys are dotted, list items are numbered from 0: `search.0.epochs=3`, `budget.trials=4`.
    """
    result = raw
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SpecError(f"--set {text}: expected key=value, e.g. --set budget.trials=4")
        path = key.strip().replace("[", ".").replace("]", "").split(".")
        if "" in path:
            raise SpecError(f"--set {text}: {key.strip()!r} has an empty part between its dots")
        result = _replaced(result, path, read_yaml(value, source=f"--set {key}"), text)
    return result


def _replaced(node: Any, path: list[str], value: Any, text: str) -> Any:
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(node, list):
        if not first.isdecimal() or int(first) >= len(node):
            use = f"Use 0 to {len(node) - 1}" if node else "The list is empty"
            raise SpecError(f"--set {text}: {first!r} is no item here. {use}")
        index = int(first)
        new = _replaced(node[index], rest, value, text)
        return [*node[:index], new, *node[index + 1 :]]
    if node is None or isinstance(node, dict):
        old = dict(node or {})
        return {**old, first: _replaced(old.get(first), rest, value, text)}
    raise SpecError(f"--set {text}: {first!r} is inside {node!r}, which has no parts")
