"""HTML and SVG elements that cannot be injected into: text is escaped unless it is `Safe`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

VOID = frozenset({"img", "br", "meta", "col"})
SHAPES = frozenset({"path", "circle", "line", "rect"})

Attribute = str | int | float | None


class Safe(str):
    """Markup that was built here. Whatever is not of this type is text from outside."""

    __slots__ = ()


def text(value: str) -> Safe:
    """`value` with everything that HTML would interpret taken out of its hands."""
    return value if isinstance(value, Safe) else Safe(html.escape(value, quote=True))


def el(name: str, /, *children: str, **attributes: Attribute) -> Safe:
    """One element.

    Args:
        name: The tag, written by us.
        children: `Safe` markup as it is, any other string escaped.
        attributes: Values are escaped and `None` leaves the attribute out. `class_` stands for
            `class` and `stroke_width` for `stroke-width`.
    """
    opening = name + "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Safe(f"<{opening}>")
    if name in SHAPES and not children:
        return Safe(f"<{opening}/>")
    return Safe(f"<{opening}>{join(children)}</{name}>")


def join(parts: Iterable[str], separator: str = "") -> Safe:
    """Parts one after another, each escaped unless it is `Safe`."""
    return Safe(text(separator).join(text(part) for part in parts))


def prose(sentence: str) -> Safe:
    """A sentence of ours with `names` in backticks set as code."""
    return Safe(re.sub(r"`([^`]+)`", r"<code>\1</code>", text(sentence)))


def _attribute(key: str, value: Attribute) -> str:
    if value is None:
        return ""
    name = key.rstrip("_").replace("_", "-")
    shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(shown, quote=True)}"'
