"""What in an input an answer rests on: whatever makes the label less likely when it is taken away.

Images: occlusion sensitivity (Zeiler & Fergus, ECCV 2014, section 4.2): a grid of cells is covered
one by one, and the fall of the label's probability is told for each. Texts: the same with single
words left out (Li, Monroe & Jurafsky, 2016, "Understanding neural networks through representation
erasure"). Both ask the model as it is, so they hold for every Predictor. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bundle.predictor import Predictor
from orchestrator.bundle.preparing import ImagePreparer, Input, Preparer, TextPreparer
from orchestrator.data.inputs import Prepared
from orchestrator.errors import SpecError, nearest
from orchestrator.spec.parts import InputContract

CELLS = 7  # a side
MOST_WORDS = 256  # each costs a forward pass

Ask = Callable[[Sequence[Any]], npt.NDArray[np.float32]]  # inputs that were read: probabilities

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass(frozen=True)
class Occlusion:
    """How far a label's probability falls when a cell of the prepared image is covered.

    Attributes:
        label: The label.
        falls: float32 [rows, columns] from the top left; negative where it rises.
    """

    label: str
    falls: npt.NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        rows, cols = self.falls.shape
        return {
            "label": self.label,
            "map": {"rows": rows, "cols": cols, "values": self.falls.tolist()},
        }


@dataclass(frozen=True)
class Word:
    """How far a label's probability falls without the characters `start` … `end - 1`."""

    start: int
    end: int
    fall: float


@dataclass(frozen=True)
class Erasure:
    """How far a label's probability falls without each of the words that the model sees."""

    label: str
    words: tuple[Word, ...]

    def to_json(self) -> dict[str, Any]:
        spans = [{"start": w.start, "end": w.end, "score": w.fall} for w in self.words]
        return {"label": self.label, "spans": spans}


def explain(
    predictor: Predictor, value: Input, *, label: str | None = None, batch_size: int = 32
) -> Occlusion | Erasure:
    """What a label of an input rests on.

    Args:
        predictor: Of a bundle that classifies.
        value: The input, as `Predictor.predict` takes it.
        label: Which label; the likeliest when None.
        batch_size: Changed inputs that are asked together.

    Raises:
        DataError: The input cannot be decoded.
        OSError: It cannot be read.
        SpecError: The bundle has no such label, or does not classify.
    """
    labels = predictor.manifest.task.labels
    if label is not None and label not in labels:
        raise SpecError(f"label: {label!r} is none of this model's.{nearest(label, labels)}")
    if predictor.manifest.task.kind.startswith(("token-", "question-")):
        raise SpecError(f"{predictor.manifest.task.kind} gives no label to a whole input")
    preparer, contract = predictor.preparer, predictor.manifest.input

    ask = asking(preparer, predictor.probabilities, batch_size=batch_size)
    if isinstance(preparer, ImagePreparer) and isinstance(contract, InputContract):
        pixels = preparer.read(value)
        chosen, falls = _falls(ask, [pixels, *_covered(pixels, contract)], labels, label)
        return Occlusion(chosen, falls.reshape(CELLS, CELLS))
    assert isinstance(preparer, TextPreparer)
    return erasure(ask, preparer, preparer.text(value), labels, label=label)


def asking(
    preparer: Preparer,
    answer: Callable[[Sequence[Prepared]], npt.NDArray[np.float32]],
    *,
    batch_size: int,
) -> Ask:
    """A model that is asked for the probabilities of any number of inputs, a batch at a time.

    Args:
        preparer: Of the model.
        answer: Its probabilities for a batch, which is as many views as the preparer makes.
        batch_size: Inputs of a batch.
    """

    def ask(read: Sequence[Any]) -> npt.NDArray[np.float32]:
        parts = [
            answer(preparer.batch(read[start : start + batch_size]))
            for start in range(0, len(read), batch_size)
        ]
        return np.concatenate(parts)

    return ask


def erasure(
    ask: Ask,
    preparer: TextPreparer,
    text: str,
    labels: Sequence[str],
    *,
    label: str | None = None,
    most_words: int = MOST_WORDS,
) -> Erasure:
    """What a label of a text rests on.

    Args:
        ask: The model.
        preparer: Of the model.
        text: The text.
        labels: Of the model.
        label: Which one; the likeliest when None.
        most_words: How many words are left out, one by one, from the first on.
    """
    text = preparer.beginning(text)
    spans = [found.span() for found in _WORD.finditer(text)][:most_words]
    without = [preparer.tokens(text[:start] + text[end:]) for start, end in spans]
    chosen, falls = _falls(ask, [preparer.tokens(text), *without], labels, label)
    words = zip(spans, falls.tolist(), strict=True)
    return Erasure(chosen, tuple(Word(*span, fall) for span, fall in words))


def _falls(
    ask: Ask,
    read: Sequence[Any],
    labels: Sequence[str],
    label: str | None,
) -> tuple[str, npt.NDArray[np.float32]]:
    """The label, and its probability for the first of `read` less those for the others."""
    probs = ask(read)
    index = labels.index(label) if label is not None else int(probs[0].argmax())
    return labels[index], probs[0, index] - probs[1:, index]


def _covered(pixels: npt.NDArray[np.uint8], contract: InputContract) -> list[npt.NDArray[np.uint8]]:
    """The image with each cell in the mean colour of what the backbone was trained on, by rows."""
    colour = np.rint(np.multiply(contract.mean, 255)).astype(np.uint8)[:, None, None]
    edges = np.linspace(0, contract.size, CELLS + 1).round().astype(int)
    found = []
    for top, bottom in pairwise(edges):
        for left, right in pairwise(edges):
            copy = pixels.copy()
            copy[:, top:bottom, left:right] = colour
            found.append(copy)
    return found
