"""Tags of words in one scheme, IOB2, whichever a corpus is written in.

IOB2 begins every entity with B- and goes on with I- (Tjong Kim Sang & Veenstra, EACL 1999). IOB1
begins one with B- only where it follows another of its kind. BIOES, also called BILOU, marks the
last word (E- or L-) and entities of one word (S- or U-) as well. Tags without a place, such as
PER, are IO: neighbours of one kind are one entity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Scheme = Literal["IO", "IOB1", "IOB2", "BIOES"]

OUTSIDE = "O"
_PLACES = "BIESLU"
_FIRST = "BSU"
_ENDS = "ESLU"


class TagError(ValueError):
    """Why something is no tag."""


@dataclass(frozen=True)
class Tag:
    """A tag taken apart: the place in its entity, one of BIESLU, or none; and the kind."""

    place: str
    kind: str

    @classmethod
    def parse(cls, text: str) -> Tag:
        """The tag that `text` is.

        Raises:
            TagError: It is none.
        """
        if text == OUTSIDE:
            return cls("", "")
        place, dash, kind = text.partition("-")
        if dash and len(place) == 1 and place in _PLACES and kind:
            return cls(place, kind)
        if not text or text.isdecimal():
            raise TagError(f"{text!r} where a tag is expected. Write names, such as B-PER or O")
        return cls("I", text)


def scheme_of(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme that a corpus is written in.

    Raises:
        TagError: Something in it is no tag.
    """
    places: set[str] = set()
    bare = first_is_b = first_is_i = False
    for tags in sentences:
        before = Tag("", "")
        for text in tags:
            tag = Tag.parse(text)
            places.add(tag.place)
            bare |= bool(tag.kind) and text == tag.kind
            if tag.kind and tag.kind != before.kind:
                first_is_b |= tag.place == "B"
                first_is_i |= tag.place == "I"
            before = tag
    if places & {*_ENDS}:
        return "BIOES"
    if bare:
        return "IO"
    return "IOB1" if first_is_i and not first_is_b else "IOB2"


def as_iob2(tags: Sequence[str], scheme: Scheme) -> tuple[tuple[str, ...], int]:
    """The tags in IOB2, and how many of them did not follow the one before.

    A tag that goes on with what has not begun begins an entity.
    """
    found: list[str] = []
    invalid = 0
    before, over = Tag("", ""), True
    for text in tags:
        tag = Tag.parse(text)
        if not tag.kind:
            found.append(OUTSIDE)
        else:
            goes_on = tag.place not in _FIRST and tag.kind == before.kind and not over
            stray = tag.place not in _FIRST and not goes_on
            invalid += stray and scheme in ("IOB2", "BIOES")
            found.append(f"{'I' if goes_on else 'B'}-{tag.kind}")
        before, over = tag, tag.place in _ENDS
    return tuple(found), invalid


def kinds_of(tags: Iterable[str]) -> tuple[str, ...]:
    """The kinds of entity that IOB2 tags name, sorted."""
    return tuple(sorted({tag[2:] for tag in tags if tag != OUTSIDE}))
