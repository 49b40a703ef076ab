"""What each method of the client sends, and what it reads from the answer. No connection here."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast
from urllib.parse import quote

from orchestrator.errors import DataError, SpecError, shown

from ..contract import Embeddings, Explanation, ModelDetails, ModelList, Prediction, Told

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T", bound=Told)


@dataclass(frozen=True)
class Question:
    """A question, and the text that holds its answer."""

    question: str
    context: str


# A text; an encoded image or text file, or the path of one; a PIL image; a question.
Input: TypeAlias = "str | bytes | Path | Image | Question"


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, made anew for each attempt from plain values, and the model of its answer."""

    method: str
    path: str
    answer: type[T]
    options: dict[str, Any] = field(default_factory=dict)  # as httpx's build_request takes them


def models() -> Call[ModelList]:
    """Everything that is served."""
    return Call("GET", "/v1/models", ModelList)


def model(name: str) -> Call[ModelDetails]:
    """One model."""
    return Call("GET", _path(name), ModelDetails)


def predict(
    name: str,
    inputs: Input | Sequence[Input],
    *,
    top: int | None = None,
    labels: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
) -> Call[Prediction]:
    """An answer for each input."""
    fields = _lists(labels=labels, templates=templates)
    options = _body(_several(inputs), fields)
    if top is not None:
        options["params"] = {"top": top}
    return Call("POST", _path(name, "predict"), Prediction, options)


def embed(name: str, inputs: Input | Sequence[Input]) -> Call[Embeddings]:
    """A vector for each input."""
    return Call("POST", _path(name, "embed"), Embeddings, _body(_several(inputs), {}))


def explain(
    name: str,
    value: Input,
    *,
    label: str | None = None,
    labels: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
) -> Call[Explanation]:
    """What in one input speaks for a label."""
    fields = _lists(labels=labels, templates=templates)
    if label is not None:
        fields["label"] = label
    return Call("POST", _path(name, "explain"), Explanation, _body([value], fields))


def _path(name: str, verb: str = "") -> str:
    return f"/v1/models/{quote(name, safe='')}{f':{verb}' if verb else ''}"


def _several(inputs: Input | Sequence[Input]) -> list[Input]:
    """The inputs as a list; one alone is a list of one."""
    if isinstance(inputs, str | bytes) or not isinstance(inputs, Sequence):
        return [inputs]
    if not inputs:
        raise SpecError("inputs: none given. Give one input, or a sequence of them")
    return list(cast("Sequence[Input]", inputs))


def _lists(**named: Sequence[str] | None) -> dict[str, Any]:
    for key, value in named.items():
        if isinstance(value, str):
            raise SpecError(f"{key}: {shown(value)} is one text. Give a list, as in [{value!r}]")
    return {key: list(value) for key, value in named.items() if value is not None}


@dataclass(frozen=True)
class _File:
    name: str
    content: bytes
    media_type: str = "application/octet-stream"


def _body(inputs: list[Input], fields: dict[str, Any]) -> dict[str, Any]:
    """The smallest body that holds the inputs.

    One file alone is the body itself; several files, or files beside texts, are parts of a form,
    which costs no base64; all else is JSON.
    """
    parts = [_part(value) for value in inputs]
    files = [part for part in parts if isinstance(part, _File)]
    if not files or any(isinstance(part, Question) for part in parts):
        return {"json": {"inputs": [_item(part) for part in parts], **fields}}
    if len(parts) == 1 and not fields:
        return {"content": files[0].content, "headers": {"Content-Type": files[0].media_type}}
    return {"files": [*_form_inputs(parts), *_form_fields(fields)]}


def _part(value: Input) -> _File | str | Question:
    if isinstance(value, str | Question):
        return value
    if isinstance(value, bytes):
        return _File("input", value)
    if isinstance(value, Path):
        try:
            return _File(value.name, value.read_bytes())
        except OSError as err:
            raise DataError(f"{value}: {err.strerror}") from err
    pil = sys.modules.get("PIL.Image")  # whoever has such an image has imported it
    if pil is not None and isinstance(value, pil.Image):
        buffer = io.BytesIO()
        value.save(buffer, "PNG", compress_level=1)
        return _File("input.png", buffer.getvalue(), "image/png")
    raise SpecError(
        f"inputs: {shown(value)} is {type(value).__name__}. Give a str (a text), bytes or a "
        "pathlib.Path (an image or text file), a PIL image, or a Question"
    )


def _item(part: _File | str | Question) -> dict[str, str]:
    match part:
        case _File():
            return {"image": base64.b64encode(part.content).decode("ascii")}
        case Question():
            return {"question": part.question, "context": part.context}
        case _:
            return {"text": part}


def _form_inputs(parts: list[_File | str | Question]) -> list[tuple[str, Any]]:
    return [
        ("input", (part.name, part.content, part.media_type))
        if isinstance(part, _File)
        else ("input", (None, part))
        for part in parts
    ]


def _form_fields(fields: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (key, (None, text))
        for key, value in fields.items()
        for text in ([value] if isinstance(value, str) else value)
    ]
