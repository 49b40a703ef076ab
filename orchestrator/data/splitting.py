"""Which training images are held out for validation: stable first, stratified as far as that goes.

An image is held out when a number drawn from (seed, content) alone lies below the fraction. So
copies of an image stay together, and adding, removing or renaming other files moves nothing.

The price is that a class's share is binomial rather than exact: with n images and fraction f its
standard deviation is sqrt(f (1 - f) / n), 3.6 points for n = 100 and 1.1 for n = 1,000 at
f = 0.15. Nothing stable can do better: if x is never to move, its side is a function of x alone,
and the sides of n images are then n independent draws. Quotas by rank within a class are exact,
and move images near the boundary with each file added.

For the same reason no stable rule can promise each class an image on both sides (of three images
two share a side, and alone those two would break the promise). Here the promise wins: a class
whose draws all fall on one side sends the image nearest to the other side across. That concerns
small classes, (1 - f)^n + f^n of them: 20 % at n = 10, 0.03 % at n = 50. Only such a borrowed
image can move, back to where its draw puts it or giving way to a nearer one, when its own class
grows.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def held_out(
    contents: Sequence[str],
    labels: Sequence[tuple[str, ...]],
    *,
    fraction: float,
    seed: int,
    purpose: str = "split",
) -> NDArray[np.bool_]:
    """Marks the images to validate on, bool [N].

    Every class with two or more distinct images has at least one on each side. With several labels
    an image this may be impossible; then as many classes as a greedy pass in order of name allows.

    Args:
        contents: Content hash of each image.
        labels: Its labels: one, or any number.
        fraction: Expected share of images held out, within (0, 1).
        seed: Another seed, another split.
        purpose: Another purpose, another draw: what one split has left can be split again.
    """
    draws = {content: _draw(purpose, seed, content) for content in set(contents)}
    sides = _Sides(draws, _labels_by_content(contents, labels), fraction)
    for label in sorted(sides.members):
        sides.fill(label, validation=False)
        sides.fill(label, validation=True)
    return np.fromiter((content in sides.validation for content in contents), bool, len(contents))


class _Sides:
    """Distinct images on their two sides, with a count of each class on each."""

    def __init__(
        self, draws: dict[str, float], labels: dict[str, frozenset[str]], fraction: float
    ) -> None:
        self._labels = labels
        self.validation = {content for content, draw in draws.items() if draw < fraction}
        self.members: dict[str, list[str]] = defaultdict(list)  # by label, lowest draw first
        self._counts: dict[tuple[str, bool], int] = defaultdict(int)
        for content in sorted(draws, key=lambda content: (draws[content], content)):
            for label in labels[content]:
                self.members[label].append(content)
                self._counts[label, content in self.validation] += 1

    def fill(self, label: str, *, validation: bool) -> None:
        """Bring an image of `label` to a side that has none, if that empties no other class's."""
        members = self.members[label]
        if len(members) < 2 or self._counts[label, validation]:
            return
        nearest_first: Iterable[str] = members if validation else reversed(members)
        for content in nearest_first:
            if all(self._counts[other, not validation] >= 2 for other in self._labels[content]):
                self._move(content, validation)
                return

    def _move(self, content: str, validation: bool) -> None:
        (self.validation.add if validation else self.validation.remove)(content)
        for label in self._labels[content]:
            self._counts[label, validation] += 1
            self._counts[label, not validation] -= 1


def _labels_by_content(
    contents: Sequence[str], labels: Sequence[tuple[str, ...]]
) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = defaultdict(frozenset)
    for content, names in zip(contents, labels, strict=True):
        found[content] |= frozenset(names)
    return found


def _draw(purpose: str, seed: int, content: str) -> float:
    """A number within [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{purpose} {seed} {content}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
