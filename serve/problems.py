"""Why a request has no answer, as RFC 9457 has it: one slug, title and status for each kind."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.errors import OrchestratorError, listing

Slug = Literal[
    "malformed",
    "key-missing",
    "key-wrong",
    "unknown-path",
    "unknown-model",
    "unoffered",
    "method",
    "slow-body",
    "too-long",
    "media-type",
    "undecodable",
    "too-large",
    "too-many",
    "unsuitable",
    "overloaded",
    "not-ready",
    "deadline",
    "internal",
]


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlist, _BRIEF.maxdict = 2, 60, 60, 4, 4


@dataclass(frozen=True)
class Kind:
    """What all problems of one slug have in common."""

    status: int
    title: str


KINDS: dict[Slug, Kind] = {
    "malformed": Kind(400, "The request cannot be read"),
    "key-missing": Kind(401, "A key is needed"),
    "key-wrong": Kind(403, "The key is not one of ours"),
    "unknown-path": Kind(404, "There is nothing at this path"),
    "unknown-model": Kind(404, "No such model is served"),
    "unoffered": Kind(404, "This model does not offer that"),
    "method": Kind(405, "The path does not take this method"),
    "slow-body": Kind(408, "The body came too slowly"),
    "too-long": Kind(413, "The body is too long"),
    "media-type": Kind(415, "The model does not take this kind of body"),
    "undecodable": Kind(422, "The input cannot be decoded"),
    "too-large": Kind(422, "The input is too large"),
    "too-many": Kind(422, "There are too many of them"),
    "unsuitable": Kind(422, "The value does not suit the model"),
    "overloaded": Kind(503, "Too many requests at once"),
    "not-ready": Kind(503, "Not every model is ready"),
    "deadline": Kind(504, "The answer was not ready in time"),
    "internal": Kind(500, "The server failed"),
}


@dataclass(eq=False)
class Refusal(OrchestratorError):  # noqa: N818  (what a handler raises is an answer, not a fault)
    """A request, or one of its items, that is not answered; the client is told why.

    Attributes:
        slug: Which kind of problem.
        detail: What is wrong with which value, what is allowed, what to do.
        headers: That the response carries beside, such as Retry-After.
        items: Where every item of a request is bad, the problem of each.
    """

    slug: Slug
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    items: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        super().__init__(self.slug, self.detail, self.headers, self.items)

    def __str__(self) -> str:
        return f"{KINDS[self.slug].title}: {self.detail}"

    @property
    def status(self) -> int:
        """The HTTP status."""
        return KINDS[self.slug].status

    def document(self, instance: str | None = None) -> dict[str, Any]:
        """The problem as JSON.

        Args:
            instance: The request's id; None for one item, whose request has it.
        """
        found: dict[str, Any] = {
            "type": f"/problems/{self.slug}",
            "title": KINDS[self.slug].title,
            "status": self.status,
            "detail": self.detail,
        }
        if instance is not None:
            found["instance"] = instance
        if self.items:
            found["items"] = [item.document() for item in self.items]
        return found


def overloaded(what: str, *, retry_after_s: int = 1) -> Refusal:
    """The 503 that asks a client to come again."""
    return Refusal(
        "overloaded",
        f"{what}. Send the request again in {retry_after_s} s, or fewer at once",
        {"Retry-After": str(retry_after_s)},
    )


def not_ready(names: Sequence[str], *, retry_after_s: int = 2) -> Refusal:
    """The 503 that says which models cannot answer."""
    return Refusal(
        "not-ready",
        f"{listing(names)} does not answer its probe. Ask again in {retry_after_s} s; the server's "
        "log has the reason",
        {"Retry-After": str(retry_after_s)},
    )


def all_refused(items: tuple[Refusal, ...]) -> Refusal:
    """What a request is answered of which no item can be; a lone item speaks for itself."""
    if len(items) == 1:
        return items[0]
    slug: Slug = "internal" if any(item.status >= 500 for item in items) else "unsuitable"
    return Refusal(slug, f"None of the {len(items)} inputs can be answered", items=items)


def brief(value: object) -> str:
    """What a client sent, as a message repeats it: neither long nor deep, whatever it is."""
    return _BRIEF.repr(value)


def json_bytes(value: object) -> bytes:
    """JSON as sent: UTF-8, where half of a surrogate pair stays the escape that it came as.

    Raises:
        ValueError: It holds NaN or infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
