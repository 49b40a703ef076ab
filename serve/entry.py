"""What is told about a served model: which bundle it is, what it takes and how well it does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.bundle.bundle import Bundle
from orchestrator.spec.parts import TaskKind

from .contract import Accepts
from .limits import Limits


@dataclass(frozen=True)
class Identity:
    """Which bundle an answer is of.

    Attributes:
        name: In the path of requests.
        version: In the registry; the start of the digest where it is in none.
        alias: That led to the version.
        digest: SHA-256 of the bundle.
    """

    name: str
    version: str
    alias: str | None
    digest: str


@dataclass(frozen=True)
class Entry:
    """One name that is served, and the bundle behind it.

    Attributes:
        identity: Of the bundle.
        bundle: Verified; its files are read when they are asked for.
        limits: Kept by the endpoint.
        zero_shot: Whether requests may bring their own labels.
    """

    identity: Identity
    bundle: Bundle
    limits: Limits
    zero_shot: bool = False

    @property
    def name(self) -> str:
        """In the path of requests."""
        return self.identity.name

    @property
    def version(self) -> str:
        """In the registry."""
        return self.identity.version

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the outputs."""
        return self.bundle.labels

    @property
    def accepts(self) -> Accepts:
        """What one input is."""
        return accepts_of(self.bundle.task.kind)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """As `GET /v1/models` lists it."""
        scores = self.bundle.scores
        return {
            "name": self.identity.name,
            "version": self.identity.version,
            "alias": self.identity.alias,
            "task": self.bundle.task.kind,
            "labels": list(self.labels),
            "digest": self.identity.digest,
            "metrics": (scores.test or scores.validation).metrics,
        }

    @cached_property
    def details(self) -> dict[str, Any]:
        """As `GET /v1/models/NAME` tells it."""
        return {
            **self.summary,
            "card": self.bundle.read("MODEL_CARD.md").decode(),
            "input": self.bundle.input.to_json(),
            "limits": self.limits.to_json(),
            "accepts": [self.accepts],
            "zero_shot": self.zero_shot,
        }


def accepts_of(kind: TaskKind) -> Accepts:
    """What a task's inputs are in a request."""
    words = kind.split("-")
    if "image" in words:
        return "image"
    return "question" if "question" in words else "text"
