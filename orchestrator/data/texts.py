"""Texts: bytes to characters, and the hash by which copies are found."""

from __future__ import annotations

import codecs
import hashlib
import unicodedata
from dataclasses import dataclass

from orchestrator.errors import UnreadableExample

FALLBACK = "cp1252"
_MARK_AS_SPACE = {0xFEFF: " "}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class DecodedText:
    """The characters of a text, and whether its encoding had to be assumed."""

    text: str
    assumed: bool


def decoded_text(data: bytes) -> DecodedText:
    """A text from its bytes.

    A byte order mark decides; without one it is UTF-8 or, where it is not valid UTF-8, assumed to
    be Windows-1252.

    Raises:
        UnreadableExample: It holds NUL characters, or nothing but white space.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    assumed = False
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        text = data.decode(FALLBACK, errors="replace")
        assumed = encoding is None
    return DecodedText(_checked(text), assumed)


def decode_text(data: bytes) -> str:
    """The characters of a text alone; errors as in `decoded_text`."""
    return decoded_text(data).text


def given_text(text: str) -> str:
    """A text that comes as characters, each in its place.

    What has no UTF-8 (a lone surrogate) becomes a question mark, a byte order mark a space.

    Raises:
        UnreadableExample: As in `decoded_text`.
    """
    return _checked(encoded_text(text).decode().translate(_MARK_AS_SPACE))


def encoded_text(text: str) -> bytes:
    """Characters as UTF-8; a lone surrogate, which has none, as a question mark."""
    return text.encode("utf-8", "replace")


def _checked(text: str) -> str:
    if "\0" in text:
        raise UnreadableExample("holds NUL characters: it is no text")
    if not text.strip():
        raise UnreadableExample("is empty")
    return text


def text_hash(text: str) -> str:
    """BLAKE2b of a text: equal for texts that differ in white space or Unicode form alone."""
    normal = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
