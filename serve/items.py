"""One input of a request: what a model may be given, and what of it is refused unread."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from orchestrator.data.texts import decode_text
from orchestrator.errors import UnreadableExample, reason_of

from .images import check_image
from .limits import Limits
from .problems import Refusal


@dataclass(frozen=True)
class Question:
    """A question, and the text that holds its answer."""

    question: str
    context: str


Item = bytes | str | Image.Image | Question
Checked = Item | Refusal


def checked_image(data: bytes, limits: Limits) -> Checked:
    """An encoded image, or why its header already refuses it."""
    try:
        check_image(data, limits)
    except Refusal as refused:
        return refused
    return data


def checked_text(value: Checked | bytes, limits: Limits) -> Checked:
    """A text, or the bytes of a text file, if it is short enough and all of it is characters."""
    if isinstance(value, bytes):
        try:
            value = decode_text(value)
        except UnreadableExample as err:
            return Refusal("undecodable", reason_of(err))
    if not isinstance(value, str):
        return value
    if len(value) > limits.text_chars:
        return Refusal(
            "too-large",
            f"The text has {len(value):,} characters. At most {limits.text_chars:,} are taken",
        )
    if not is_unicode(value):
        return Refusal("undecodable", "The text holds half of a surrogate pair: it is no Unicode")
    return value


def is_unicode(text: str) -> bool:
    """Whether it holds no half of a surrogate pair, which no UTF-8 can carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_question(item: Mapping[str, Any], limits: Limits) -> Checked:
    """A question with its context, both short enough."""
    question, context = item["question"], item["context"]
    if not (isinstance(question, str) and isinstance(context, str)):
        return Refusal("unsuitable", "`question` and `context` are texts, and one of them is not")
    if len(question) > limits.prompt_chars:
        return Refusal(
            "too-large",
            f"The question has {len(question):,} characters. At most {limits.prompt_chars:,} are "
            "taken",
        )
    if not question.strip():
        return Refusal("undecodable", "The question is empty")
    for text in (checked_text(question, limits), checked_text(context, limits)):
        if isinstance(text, Refusal):
            return text
    return Question(question, context)


def from_base64(text: str) -> bytes | None:
    """The bytes; None where it is no base64. Line breaks and a `data:` prefix are taken."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if "\n" in text:
        text = text.replace("\r", "").replace("\n", "")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
