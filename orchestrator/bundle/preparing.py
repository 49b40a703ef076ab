"""From what a caller gives to what a bundle's model takes. No torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from tokenizers import Tokenizer

from orchestrator.bundle.bundle import Bundle
from orchestrator.data.inputs import Prepared
from orchestrator.data.texts import decode_text
from orchestrator.data.tokens import Frame
from orchestrator.data.transforms import eval_pixels_of
from orchestrator.spec.parts import InputContract, TextContract

Input = bytes | str | Path | Image.Image

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

    def batch(self, read: Sequence[Any]) -> list[Prepared]:
        """Decoded inputs as one batch, once for each view whose logits are averaged outside."""


def preparer_of(bundle: Bundle) -> Preparer:
    """What prepares inputs for a bundle's model."""
    contract = bundle.input
    if isinstance(contract, InputContract):
        return ImagePreparer(contract)
    tokenizer = Tokenizer.from_str(bundle.read("tokenizer.json").decode())
    return TextPreparer(contract, tokenizer, bundle.manifest.strategy.predict_views)


class ImagePreparer:
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

    def batch(self, read: Sequence[Any]) -> list[Prepared]:
        return [np.stack(read)]


class TextPreparer:
    """Texts, and paths and bytes of text files, to token numbers."""

    def __init__(self, contract: TextContract, tokenizer: Tokenizer, n_views: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._contract, self._tokenizer, self._n_views = contract, tokenizer, n_views
        self._frame = Frame.of(tokenizer)

    def uri(self, value: Input, position: int) -> str:
        return str(value) if isinstance(value, Path) else f"input:{position}"

    def read(self, value: Input) -> npt.NDArray[np.int32]:
        return self.tokens(self.text(value))

    def text(self, value: Input) -> str:
        """The text that an input holds; raises as `read` does."""
        match value:
            case str():
                return decode_text(value.encode("utf-8", "surrogatepass"))
            case bytes():
                return decode_text(value)
            case Path():
                return decode_text(value.read_bytes())
            case _:
                raise TypeError(f"{type(value).__name__} is no input. Give a text, bytes or a Path")

    def beginning(self, text: str) -> str:
        """As much of a text as its views show, and one window more."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        most = self._contract.size * (self._n_views + 1)
        return text[: offsets[most - 1][1]] if len(offsets) > most else text

    def tokens(self, text: str) -> npt.NDArray[np.int32]:
        """Token numbers of a text, without special ones."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, np.int32)

    def batch(self, read: Sequence[Any]) -> list[Prepared]:
        return [
            self._frame.rows(read, self._contract, np.full(len(read), view))
            for view in range(self._n_views)
        ]


def _encoded(image: Image.Image) -> bytes:
    """A lossless file of `image`, so that the one decoder decides what its values mean."""
    file = io.BytesIO()
    form = "PNG" if image.mode in _PNG_MODES else "TIFF"
    image.save(file, form, exif=image.getexif(), compress_level=1)
    return file.getvalue()
