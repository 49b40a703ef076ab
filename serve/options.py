"""What a request asks for beside its inputs, each within its limit."""

from __future__ import annotations

from .items import is_unicode
from .limits import Limits
from .problems import Refusal, brief


def check_count(n_items: int, limits: Limits) -> None:
    """Refuse more inputs than a request may bring."""
    if n_items > limits.items:
        raise Refusal(
            "too-many",
            f"{n_items} inputs or more in one request. At most {limits.items} are taken: send "
            "several requests",
        )


def parse_top(text: str) -> int:
    """How many labels are told, as a query or a form has it."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise Refusal("malformed", f"top: {brief(text)} is no whole number from 1")
    return checked_top(int(text))


def checked_top(value: object) -> int:
    """How many labels are told."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Refusal("malformed", f"top: {brief(value)} is no whole number from 1")
    return value


def checked_label(value: object, limits: Limits) -> str | None:
    """The label that is to be explained; None where none is named."""
    if not isinstance(value, str | None):
        raise Refusal("malformed", f"label: {brief(value)} is no text")
    if value is not None:
        _check_length("label", value, limits)
    return value


def checked_templates(value: object, limits: Limits) -> tuple[str, ...] | None:
    """Prompt templates, each with a place for the label."""
    found = checked_texts("templates", value, limits.templates, limits)
    for template in found or ():
        if template.count("{}") != 1:
            raise Refusal(
                "unsuitable",
                f"templates: {brief(template)} needs one {{}}, where the label goes",
            )
    return found


def check_prompts(n_labels: int, n_templates: int, limits: Limits) -> None:
    """Refuse more prompts than a request may have embedded."""
    if n_labels * n_templates > limits.prompts:
        raise Refusal(
            "too-many",
            f"labels: {n_labels:,} under {n_templates:,} templates are "
            f"{n_labels * n_templates:,} prompts. At most {limits.prompts:,} are taken: give fewer "
            "labels, or fewer templates",
        )


def checked_texts(name: str, value: object, most: int, limits: Limits) -> tuple[str, ...] | None:
    """A list of distinct, short, written texts; None where there is none."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise Refusal("malformed", f"{name}: {brief(value)} is no list of texts")
    if not value:
        raise Refusal("unsuitable", f"{name}: none given. Leave the key out, or give some")
    if len(value) > most:
        raise Refusal("too-many", f"{name}: {len(value):,}. At most {most:,} are taken")
    for text in value:
        _check_length(name, text, limits)
        if not text.strip() or not is_unicode(text) or "\0" in text:
            raise Refusal("unsuitable", f"{name}: {brief(text)} is no written text")
    if len(set(value)) < len(value):
        twice = next(text for text in value if value.count(text) > 1)
        raise Refusal("unsuitable", f"{name}: {brief(twice)} is there twice")
    return tuple(value)


def _check_length(name: str, text: str, limits: Limits) -> None:
    if len(text) > limits.prompt_chars:
        raise Refusal(
            "too-large",
            f"{name}: {brief(text)} has {len(text):,} characters. At most "
            f"{limits.prompt_chars:,} are taken",
        )
