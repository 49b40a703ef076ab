"""References into the registry: `name`, `name/version` or `name@alias`, and what each may be."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.errors import RegistryError

CHAMPION = "champion"
NAME_RULE = "^[a-z0-9][a-z0-9._-]{0,63}$"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_RESERVED_ALIAS = re.compile(r"latest|v[0-9]+")  # MLflow gives them a meaning of their own


@dataclass(frozen=True)
class Reference:
    """A name, with at most one of a version and an alias."""

    name: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}/{self.version}"
        return f"{self.name}@{self.alias}" if self.alias is not None else self.name


def parse_reference(text: str) -> Reference:
    """What `text` refers to.

    Raises:
        RegistryError: If it has none of the three forms.
    """
    name, mark, rest = text.partition("@") if "@" in text else text.partition("/")
    check_name(name)
    if mark == "@":
        check_alias(rest)
        return Reference(name, alias=rest)
    if not mark:
        return Reference(name)
    if not _VERSION.fullmatch(rest):
        raise RegistryError(
            f"version: {rest!r} in {text!r} is not a whole number from 1, as in {name}/3"
        )
    return Reference(name, version=int(rest))


def check_name(name: str) -> None:
    """Refuse a name that is not allowed."""
    if not _NAME.fullmatch(name):
        raise RegistryError(f"name: {name!r} does not match {NAME_RULE}. Use such as solar-cells")


def check_alias(alias: str) -> None:
    """Refuse an alias that is not allowed."""
    if not _NAME.fullmatch(alias):
        raise RegistryError(f"alias: {alias!r} does not match {NAME_RULE}. Use such as {CHAMPION}")
    if _RESERVED_ALIAS.fullmatch(alias):
        raise RegistryError(f"alias: {alias!r} is reserved. `latest` and v1, v2, … cannot be set")
