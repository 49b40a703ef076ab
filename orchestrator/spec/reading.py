"""What people write: YAML read safely, and `--set key=value` laid over it."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import SpecError

MAX_SPEC_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (`no` is text, `1e-4` a number), no aliases, no repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            line = self.line + 1
            raise SpecError(f"line {line}: aliases (*name) are not read. Repeat the value")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise SpecError(f"line {line}: {key!r} appears twice. Keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


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


def read_yaml(text: str, *, source: str = "spec") -> Any:
    """Plain data from YAML text.

    Raises:
        SpecError: The text is not YAML, or uses aliases, tags or repeated keys.
    """
    if len(text) > MAX_SPEC_BYTES:
        raise SpecError(f"{source}: {len(text)} bytes is more than a spec may have (1 MiB)")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as err:
        raise SpecError(f"{source} is not YAML: {err}") from err


def read_spec_file(path: Path) -> Any:
    """Plain data from a YAML file.

    Raises:
        SpecError: The file is missing, unreadable, or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
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
        result = _replaced(result, path, read_yaml(value, source=f"--set {key}"), text)
    return result


def _replaced(node: Any, path: list[str], value: Any, text: str) -> Any:
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(node, list):
        if not first.isdigit() or int(first) >= len(node):
            raise SpecError(f"--set {text}: {first!r} is no item here. Use 0 to {len(node) - 1}")
        index = int(first)
        new = _replaced(node[index], rest, value, text)
        return [*node[:index], new, *node[index + 1 :]]
    if node is None or isinstance(node, dict):
        old = dict(node or {})
        return {**old, first: _replaced(old.get(first), rest, value, text)}
    raise SpecError(f"--set {text}: {first!r} is inside {node!r}, which has no parts")
