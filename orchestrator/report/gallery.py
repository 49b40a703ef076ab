"""Gallery: the examples that the winner got most wrong, each with its picture or text."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.errors import OrchestratorError
from orchestrator.report.figures import figure
from orchestrator.report.markup import Safe, el, join
from orchestrator.report.predictions import Basis, Predictions
from orchestrator.report.wording import percent, plural

Preview = Callable[[str, int], bytes | str | None]

MOST_SHOWN = 24
MOST_PICTURE_BYTES = 1_500_000  # over all pictures, so that the page stays small
MOST_CHARACTERS = 400  # of a text
MOST_MARKS = 8  # in a text
LEAST_FALL = 0.01  # of a probability without a word that is marked
SIGNATURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}

_MARKED = "Without a word that is marked the wrong label is less likely. "


@dataclass(frozen=True)
class Mistake:
    """One wrong answer: how sure the model was of it, and what was true."""

    example: int
    uri: str
    predicted: str
    true: str
    prob: float


def mistakes(predictions: Predictions, *, most: int = MOST_SHOWN) -> tuple[list[Mistake], int]:
    """The most confident wrong answers, and how many wrong answers there are in all."""
    found = _multi_label(predictions) if predictions.multi_label else _single_label(predictions)
    return sorted(found, key=lambda m: -m.prob)[:most], len(found)


def _single_label(given: Predictions) -> list[Mistake]:
    labels, predicted = given.task.labels, given.probs.argmax(axis=1)
    return [
        Mistake(
            example=int(given.examples[row]),
            uri=given.uris[row],
            predicted=labels[int(predicted[row])],
            true=labels[int(given.truth[row])],
            prob=float(given.probs[row, predicted[row]]),
        )
        for row in np.flatnonzero(predicted != given.truth)
    ]


def _multi_label(given: Predictions) -> list[Mistake]:
    """Each example's worst label: the one answered wrongly with the most confidence."""
    labels = given.task.labels
    wrongness = np.where(given.truth == 1, 1 - given.probs, given.probs)
    found = []
    for row in np.flatnonzero(wrongness.max(axis=1) > 0.5):
        label = int(wrongness[row].argmax())
        is_true = bool(given.truth[row, label])
        found.append(
            Mistake(
                example=int(given.examples[row]),
                uri=given.uris[row],
                predicted=f"{'not ' if is_true else ''}{labels[label]}",
                true=", ".join(labels[int(c)] for c in np.flatnonzero(given.truth[row])) or "none",
                prob=float(wrongness[row, label]),
            )
        )
    return found


def gallery(predictions: Predictions, preview: Preview | None) -> Safe:
    """The figure, or a sentence where nothing is wrong."""
    shown, n_wrong = mistakes(predictions)
    where = f"{plural(len(predictions), 'example')} of the {predictions.split} split"
    if not shown:
        return el("p", f"Not one of {where} is answered wrongly.", class_="empty")
    cards, spent = [], 0
    for mistake in shown:
        picture = _picture(predictions.split, mistake.example, preview)
        spent += len(picture or b"")
        basis = predictions.bases.get(mistake.example, ())
        cards.append(_card(mistake, picture if spent <= MOST_PICTURE_BYTES else None, basis))
    n_shown = f"The {len(shown)} of them" if n_wrong > len(shown) else "Those"
    return figure(
        f"{n_wrong:,} of {where} are wrong; these most confidently"
        if len(predictions) > 1
        else "The only example is wrong",
        el("ul", *cards, class_="gallery"),
        note=f"{n_shown} with the highest probability for a wrong label, the surest first. "
        f"{_MARKED if predictions.bases else ''}Look for wrong labels in the data before blaming "
        "the model.",
        class_="wide",
    )


def _picture(split: str, example: int, preview: Preview | None) -> bytes | str | None:
    if preview is None:
        return None
    try:
        return preview(split, example)
    except (OSError, OrchestratorError):  # an image that moved since: the card says so
        return None


def _card(mistake: Mistake, picture: bytes | str | None, basis: Sequence[Basis]) -> Safe:
    image = picture if isinstance(picture, bytes) else b""
    kind = next((k for sign, k in SIGNATURES.items() if image.startswith(sign)), None)
    if isinstance(picture, str):
        shown = el("blockquote", _beginning(picture, basis), class_="excerpt")
    elif kind:
        encoded = base64.b64encode(image).decode()
        shown = el(
            "img",
            src=f"data:{kind};base64,{encoded}",
            alt=f"Example {mistake.example}, truly {mistake.true}",
        )
    else:
        shown = el("div", "no picture", class_="no-picture")
    return el(
        "li",
        shown,
        el(
            "p",
            el("b", mistake.predicted),
            el("span", percent(mistake.prob), class_="prob"),
            class_="said",
        ),
        el("p", "truly ", el("b", mistake.true)),
        el(
            "p", _tail(mistake.uri) or f"example {mistake.example}", class_="uri", title=mistake.uri
        ),
    )


def _tail(uri: str, most: int = 24) -> str:
    """The end of a location, which is what tells one example from another."""
    return uri if len(uri) <= most else f"…{uri[1 - most :]}"


def _beginning(text: str, basis: Sequence[Basis] = ()) -> Safe:
    """How a text begins, its white space evened out, with the words marked that count most."""
    by_fall = sorted((b for b in basis if b.fall >= LEAST_FALL), key=lambda b: -b.fall)
    parts: list[str] = []
    at = n_shown = 0
    for word in sorted(by_fall[:MOST_MARKS], key=lambda b: b.start):
        before, marked = _even(text[at : word.start]), text[word.start : word.end]
        if n_shown + len(before) + len(marked) > MOST_CHARACTERS:
            break
        parts += [before, el("mark", marked, title=f"−{percent(word.fall)} without it")]
        n_shown, at = n_shown + len(before) + len(marked), word.end
    rest = _even(text[at : at + 4 * MOST_CHARACTERS]).rstrip()
    room = MOST_CHARACTERS - n_shown
    return join([*parts, rest if len(rest) <= room else f"{rest[: max(0, room - 1)]}…"])


def _even(text: str) -> str:
    """A part of a text with one space for each stretch of white space, at its ends too."""
    return " ".join(f"|{text}|".split())[1:-1]
