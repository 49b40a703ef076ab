"""Texts: bytes to characters, and the hash by which copies are found."""

from __future__ import annotations

import codecs
import hashlib
import unicodedata

from orchestrator.errors import DataError

FALLBACK = "cp1252"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class UnreadableText(DataError):  # noqa: N818  (as UndecodableImage)
    """Bytes that are no text, and why."""

    def __init__(self, reason: str, *, source: str = "") -> None:
        super().__init__(f"{source}: {reason}" if source else reason)
        self.reason = reason


def decode_text(data: bytes) -> str:
    """The characters of a text.

    A byte order mark decides; without one it is UTF-8 or, where it is not valid UTF-8,
    Windows-1252.

    Raises:
        UnreadableText: It holds NUL characters, or nothing but white space.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode(FALLBACK, errors="replace")
    if "\0" in text:
        raise UnreadableText("holds NUL characters: it is no text")
    if not text.strip():
        raise UnreadableText("is empty")
    return text


def is_fallback(data: bytes) -> bool:
    """Whether `decode_text` has to take the bytes for Windows-1252."""
    if any(data.startswith(mark) for mark, _ in _MARKS):
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def text_hash(text: str) -> str:
    """BLAKE2b of a text: equal for texts that differ in white space or Unicode form alone."""
    normal = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
