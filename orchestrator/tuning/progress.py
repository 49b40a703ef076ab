"""Whom long work tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Shows a person what happens; nothing depends on it."""

    def say(self, text: str) -> None:
        """One line."""

    def count(self, label: str, done: int, total: int) -> None:
        """`done` of `total` of something; called often, shown now and then."""


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def count(self, label: str, done: int, total: int) -> None:
        """Nothing."""
