"""From what a caller gives to what a bundle's model takes. No torch."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from tokenizers import Tokenizer

from orchestrator.bundle.bundle import Bundle
from orchestrator.data.examples import Examples
from orchestrator.data.inputs import Prepared
from orchestrator.data.texts import decode_text, given_text
from orchestrator.data.tokens import Frame
from orchestrator.data.transforms import eval_pixels_of
from orchestrator.data.windows import (
    Cutter,
    Encoded,
    Layout,
    encode,
    encoded,
    said_of,
    words_of,
)
from orchestrator.errors import UnreadableExample
from orchestrator.spec.parts import InputContract, TextContract
from orchestrator.tasks.annotations import Annotation, Question, Span, TaggedText
from orchestrator.tasks.metrics import Floats
from orchestrator.tasks.task import Said, Task


class Asked(Protocol):
    """A question on a context."""

    @property
    def question(self) -> str: ...

    @property
    def context(self) -> str: ...


# A question may come as a mapping with the two, or as JSON of one.
Input = bytes | str | Path | Image.Image | Asked | Mapping[str, str]

_EXPECTED = 'Give {"question": …, "context": …}'
_PNG_MODES = frozenset({"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"})


class Preparer(Protocol):
    """Reads single inputs, and makes batches of them."""

    def uri(self, value: Input, position: int) -> str:
        """How an answer names its input: the path as given, or `input:<position>`."""

    def read(self, value: Input) -> Any:
        """One input, decoded.

        Raises:
            DataError: It cannot be decoded.
            OSError: It cannot be read.
            TypeError: It is nothing that a model of this kind takes.
        """

    def read_example(self, examples: Examples, row: int) -> Any:
        """An example of a labelled set, decoded; errors as in `read`."""

    def batch(self, read: Sequence[Any]) -> list[Prepared]:
        """Decoded inputs as one batch, once for each view whose logits are averaged outside."""

    def said(self, read: Sequence[Any], outputs: Floats, task: Task) -> Said:
        """What a model says of decoded inputs.

        Args:
            read: The inputs.
            outputs: What it answered to their `batch`: `Task.probabilities` of its logits.
            task: What is predicted.
        """

    def answers(self, read: Sequence[Any], outputs: Floats, task: Task, *, top: int) -> list[Any]:
        """What a caller is told of decoded inputs; arguments as in `said` and `Task.answer`."""

    def merged(self, read: Sequence[Any], features: Floats) -> Floats:
        """One row for each decoded input, of the features of its `batch`."""


def preparer_of(bundle: Bundle) -> Preparer:
    """What prepares inputs for a bundle's model."""
    contract = bundle.input
    if isinstance(contract, InputContract):
        return ImagePreparer(contract)
    tokenizer = Tokenizer.from_str(bundle.read("tokenizer.json").decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    match bundle.task.kind:
        case "token-classification":
            return TaggedTextPreparer(contract, tokenizer)
        case "question-answering":
            return QuestionPreparer(contract, tokenizer)
        case _:
            return TextPreparer(contract, tokenizer, bundle.manifest.strategy.predict_views)


class _OnceAnInput:
    """Answers of models that say one thing of each input."""

    def merged(self, read: Sequence[Any], features: Floats) -> Floats:
        return features

    def said(self, read: Sequence[Any], outputs: Floats, task: Task) -> Floats:
        return outputs

    def answers(self, read: Sequence[Any], outputs: Floats, task: Task, *, top: int) -> list[Any]:
        return [task.answer(of_one, top=top) for of_one in outputs]


class ImagePreparer(_OnceAnInput):
    """Paths, encoded images and PIL images to pixels; the network turns them itself."""

    def __init__(self, contract: InputContract) -> None:
        self._contract = contract

    def uri(self, value: Input, position: int) -> str:
        return str(value) if isinstance(value, str | Path) else f"input:{position}"

    def read(self, value: Input) -> npt.NDArray[np.uint8]:
        match value:
            case str():
                data: bytes | Path = Path(value)
            case bytes() | Path():
                data = value
            case Image.Image():
                data = _encoded(value)
            case _:
                raise TypeError(
                    f"{type(value).__name__} is no input. Give a path, an encoded image or a PIL "
                    "image"
                )
        return eval_pixels_of(data, self._contract)

    def read_example(self, examples: Examples, row: int) -> npt.NDArray[np.uint8]:
        return self.read(examples.read_bytes(row))

    def batch(self, read: Sequence[Any]) -> list[Prepared]:
        return [np.stack(read)]


class TextPreparer(_OnceAnInput):
    """Texts, and paths and bytes of text files, to token numbers."""

    def __init__(self, contract: TextContract, tokenizer: Tokenizer, n_views: int) -> None:
        self._contract, self._tokenizer, self._n_views = contract, tokenizer, n_views
        self._frame = Frame.of(tokenizer)

    def uri(self, value: Input, position: int) -> str:
        return str(value) if isinstance(value, Path) else f"input:{position}"

    def read(self, value: Input) -> npt.NDArray[np.int32]:
        return self.tokens(self.text(value))

    def text(self, value: Input) -> str:
        """The text that an input holds; raises as `read` does."""
        return text_in(value)

    def beginning(self, text: str) -> str:
        """As much of a text as its views show, and one window more."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        most = self._contract.size * (self._n_views + 1)
        return text[: offsets[most - 1][1]] if len(offsets) > most else text

    def tokens(self, text: str) -> npt.NDArray[np.int32]:
        """Token numbers of a text, without special ones."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, np.int32)

    def read_example(self, examples: Examples, row: int) -> npt.NDArray[np.int32]:
        return self.read(examples.read_bytes(row))

    def batch(self, read: Sequence[Any]) -> list[Prepared]:
        return [
            self._frame.rows(read, self._contract, np.full(len(read), view))
            for view in range(self._n_views)
        ]


@dataclass(frozen=True)
class ReadText:
    """A text that answers point into, and its tokens."""

    source: Annotation
    encoded: Encoded


class _WindowedPreparer:
    """Texts that answers point into; a long one is several inputs of the batch."""

    pair: ClassVar[bool]

    def __init__(self, contract: TextContract, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cutter = Cutter(Layout.of(tokenizer, pair=self.pair), contract)

    def read_example(self, examples: Examples, row: int) -> ReadText:
        source = examples.annotation(row)
        return ReadText(source, encode(self._tokenizer, source))

    def batch(self, read: Sequence[Any]) -> list[Prepared]:
        return [self._cutter.rows([(text.encoded, w) for text in read for w in self._cut(text)])]

    def said(self, read: Sequence[Any], outputs: Floats, task: Task) -> Said:
        found, at = [], 0
        for text in read:
            windows = self._cut(text)
            own = outputs[at : at + len(windows)]
            at += len(windows)
            pairs = list(zip(windows, own, strict=True))
            found.append(said_of(text.encoded, text.source, pairs, self._cutter, task))
        return found

    def answers(self, read: Sequence[Any], outputs: Floats, task: Task, *, top: int) -> list[Any]:
        said = self.said(read, outputs, task)
        return [
            task.answer(of_one, top=top, of=text.source)
            for of_one, text in zip(said, read, strict=True)
        ]

    def merged(self, read: Sequence[Any], features: Floats) -> Floats:
        """The mean over the windows of each text."""
        ends = np.cumsum([len(self._cut(text)) for text in read])
        parts = np.split(features, ends[:-1])
        means: Floats = np.stack([part.mean(axis=0) for part in parts])
        return means

    def _cut(self, text: ReadText) -> list[Span]:
        return self._cutter.windows(len(text.encoded.lead), len(text.encoded.ids))


class TaggedTextPreparer(_WindowedPreparer):
    """Texts, and paths and bytes of text files, to tokens; their words are the tokenizer's."""

    pair = False

    def uri(self, value: Input, position: int) -> str:
        return str(value) if isinstance(value, Path) else f"input:{position}"

    def read(self, value: Input) -> ReadText:
        text = text_in(value)
        own = self._tokenizer.encode(text, add_special_tokens=False)
        words = words_of(own, text)
        source = TaggedText(text, words, ())
        return ReadText(source, encoded(own, source))


class QuestionPreparer(_WindowedPreparer):
    """Questions and their contexts, as mappings or JSON objects, to tokens."""

    pair = True

    def uri(self, value: Input, position: int) -> str:
        return f"input:{position}"

    def read(self, value: Input) -> ReadText:
        source = question_in(value)
        return ReadText(source, encode(self._tokenizer, source))


def text_in(value: Input) -> str:
    """The text that an input is.

    Raises:
        UnreadableExample: It is empty, or no text.
        TypeError: It is none.
    """
    match value:
        case str():
            return given_text(value)
        case bytes():
            return decode_text(value)
        case Path():
            return decode_text(value.read_bytes())
        case _:
            raise TypeError(f"{type(value).__name__} is no input. Give a text, bytes or a Path")


def question_in(value: Input) -> Question:
    """The question that an input asks on its context.

    Raises:
        UnreadableExample: It is no object of the two, or one of them is empty or no text.
        TypeError: It is nothing of the kind.
    """
    given: Any = value
    if isinstance(value, bytes | str | Path):
        try:
            given = json.loads(text_in(value))
        except ValueError as err:
            raise UnreadableExample(f"is not JSON ({err}). {_EXPECTED}") from err
    elif not isinstance(value, Mapping | Image.Image):
        given = {"question": value.question, "context": value.context}
    if not isinstance(given, Mapping) or not {"question", "context"} <= given.keys():
        raise UnreadableExample(f"has no question and context. {_EXPECTED}")
    question, context = given["question"], given["context"]
    if not isinstance(question, str) or not isinstance(context, str):
        raise UnreadableExample(f"has a question or context that is no text. {_EXPECTED}")
    try:
        return Question(given_text(question), given_text(context), ())
    except UnreadableExample as err:
        reason = f"has a question or context that {err.reason}. {_EXPECTED}"
        raise UnreadableExample(reason) from err


def _encoded(image: Image.Image) -> bytes:
    """A lossless file of `image`, so that the one decoder decides what its values mean."""
    file = io.BytesIO()
    form = "PNG" if image.mode in _PNG_MODES else "TIFF"
    image.save(file, form, exif=image.getexif(), compress_level=1)
    return file.getvalue()
