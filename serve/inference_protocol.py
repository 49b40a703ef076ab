"""KServe's open inference protocol, version 2 (REST): tensors in, tensors out.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from orchestrator.spec.release import PRODUCT, release

from .bodies import Submission, json_object
from .contract import Datatype
from .entry import Entry
from .items import Checked, Item, checked_image, checked_question, checked_text, from_base64
from .options import check_count
from .problems import Refusal, brief

MOST_SIDES = 8  # of a tensor


@dataclass(frozen=True)
class Inference:
    """A request of the protocol.

    Attributes:
        submission: Its inputs.
        id: The client's own name of the request.
        outputs: Names of the tensors that are wanted; None for all.
    """

    submission: Submission
    id: str | None = None
    outputs: frozenset[str] | None = None


def server() -> dict[str, Any]:
    """Which server this is."""
    return {"name": PRODUCT, "version": release(), "extensions": []}


def metadata(entry: Entry, *, versions: Sequence[str]) -> dict[str, Any]:
    """What a model takes and gives, and the versions of it that may be asked."""
    return {
        "name": entry.name,
        "versions": list(versions),
        "platform": PRODUCT,
        "inputs": [
            {"name": name, "datatype": "BYTES", "shape": [-1]} for name in input_names(entry)
        ],
        "outputs": [
            {"name": name, "datatype": kind, "shape": [-1, *rest]}
            for name, (kind, rest) in output_tensors(entry).items()
        ],
        "parameters": {"labels": list(entry.labels)},
    }


def input_names(entry: Entry) -> tuple[str, ...]:
    """The names of the tensors that one request brings."""
    return ("question", "context") if entry.accepts == "question" else (entry.accepts,)


def output_tensors(entry: Entry) -> dict[str, tuple[Datatype, tuple[int, ...]]]:
    """Name → (datatype, sides after the first, which counts the inputs) of each tensor told."""
    match entry.bundle.task.kind:
        case "token-classification":
            return {"entities": ("BYTES", ())}  # a JSON list for each text
        case "question-answering":
            return {"answer": ("BYTES", ()), "score": ("FP32", ())}
        case _:
            return {"probabilities": ("FP32", (len(entry.labels),)), "label": ("BYTES", ())}


def parse(data: bytes, *, entry: Entry) -> Inference:
    """The inputs in a request.

    Raises:
        Refusal: The protocol has no place for a problem of one input, so any refuses the request.
    """
    content = json_object(data)
    tensors = _tensors(content.get("inputs"), input_names(entry))
    if entry.accepts == "question":
        items = _questions(tensors, entry)
    else:
        items = _items(tensors[entry.accepts], entry)
    for item in items:
        if isinstance(item, Refusal):
            raise item
    identity = content.get("id")
    if not isinstance(identity, str | None):
        raise Refusal("malformed", f"id: {brief(identity)} is no text")
    wanted = _wanted(content.get("outputs"), tuple(output_tensors(entry)))
    return Inference(Submission(tuple(items)), identity, wanted)


def _tensors(inputs: object, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Each tensor that the model takes, by its name."""
    expected = " and ".join(f"`{name}`" for name in names)
    if (
        not isinstance(inputs, list)
        or len(inputs) != len(names)
        or not all(isinstance(one, dict) for one in inputs)
    ):
        count = "one tensor" if len(names) == 1 else f"{len(names)} tensors"
        raise Refusal("malformed", f"inputs: this model takes {count}, {expected}")
    for one in inputs:
        if one.get("name") not in names:
            raise Refusal(
                "unsuitable", f"inputs: no tensor {brief(one.get('name'))}. Send {expected}"
            )
    found = {one["name"]: one for one in inputs}
    if len(found) != len(names):
        raise Refusal("malformed", f"inputs: a tensor is there twice. Send {expected}")
    return found


def _wanted(outputs: object, offered: tuple[str, ...]) -> frozenset[str] | None:
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise Refusal("malformed", f"outputs: {brief(outputs)} is no list of tensors")
    names = [one.get("name") for one in outputs]
    for name in names:
        if name not in offered:
            allowed = " or ".join(offered)
            raise Refusal("unsuitable", f"outputs: there is no {brief(name)}. Ask for {allowed}")
    return frozenset(map(str, names))


def _questions(tensors: dict[str, dict[str, Any]], entry: Entry) -> Sequence[Checked]:
    """A question of one tensor with the context at its place in the other."""
    texts = {}
    for name, tensor in tensors.items():
        if tensor.get("datatype") != "BYTES":
            kind = brief(tensor.get("datatype"))
            raise Refusal("unsuitable", f"datatype: {kind} is not taken. Use BYTES")
        texts[name] = _texts(*_data(tensor), entry)
    if len(texts["question"]) != len(texts["context"]):
        raise Refusal("malformed", "data: there must be as many contexts as questions")
    return [
        checked_question({"question": question, "context": context}, entry.limits)
        for question, context in zip(texts["question"], texts["context"], strict=True)
    ]


def _items(tensor: dict[str, Any], entry: Entry) -> Sequence[Checked]:
    data, shape = _data(tensor)
    match kind := tensor.get("datatype"):
        case "BYTES":
            return _strings(data, shape, entry)
        case "UINT8" if entry.accepts == "image":
            return _pixels(data, shape, entry)
        case _:
            allowed = "BYTES or UINT8" if entry.accepts == "image" else "BYTES"
            raise Refusal("unsuitable", f"datatype: {brief(kind)} is not taken. Use {allowed}")


def _data(tensor: dict[str, Any]) -> tuple[list[Any], list[int]]:
    """The values and the shape."""
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(_is_length(side) for side in shape):
        raise Refusal("malformed", f"shape: {brief(shape)} is no list of lengths")
    if len(shape) > MOST_SIDES:
        raise Refusal("too-many", f"shape: {len(shape):,} sides. A tensor has at most {MOST_SIDES}")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise Refusal(
            "malformed", "data: there is none in the JSON, and the binary extension is not offered"
        )
    return data, shape


def _is_length(side: object) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 0 < side < 1 << 31


def _texts(data: list[Any], shape: list[int], entry: Entry) -> list[str]:
    found = _flat(data, len(shape))
    if math.prod(shape) != len(found) or not all(isinstance(text, str) for text in found):
        raise Refusal("malformed", f"data: not the {shape} strings that `shape` says")
    check_count(len(found), entry.limits)
    return found


def _flat(data: list[Any], n_sides: int) -> list[Any]:
    """The values in row-major order, which may be nested as the shape is."""
    for _ in range(n_sides - 1):
        if not all(isinstance(row, list) for row in data):
            break
        data = [value for row in data for value in row]
    return data


def _strings(data: list[Any], shape: list[int], entry: Entry) -> Sequence[Checked]:
    texts = _texts(data, shape, entry)
    if entry.accepts == "text":
        return [checked_text(text, entry.limits) for text in texts]
    return [checked_image(_bytes(text), entry.limits) for text in texts]


def _bytes(text: str) -> bytes:
    """An encoded image in a JSON string: base64, or else a character a byte."""
    found = from_base64(text)
    if found is not None:
        return found
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as err:
        raise Refusal("undecodable", "data: neither base64 nor a character a byte") from err


def _pixels(data: list[Any], shape: list[int], entry: Entry) -> Sequence[Item]:
    if len(shape) != 4 or shape[3] != 3:
        raise Refusal("unsuitable", f"shape: {shape}, but UINT8 images are [n, height, width, 3]")
    n, height, width, _ = shape
    check_count(n, entry.limits)
    if height * width > entry.limits.pixels:
        raise Refusal("too-large", f"shape: at most {entry.limits.pixels:,} pixels are taken")
    try:
        values = np.asarray(data).reshape(shape)
    except (ValueError, TypeError, OverflowError) as err:
        raise Refusal("malformed", f"data: not the {shape} numbers that `shape` says") from err
    if values.dtype.kind not in "iu":
        raise Refusal("malformed", "data: UINT8 are whole numbers")
    if values.min() < 0 or values.max() > 255:
        raise Refusal("unsuitable", "data: UINT8 goes from 0 to 255")
    return [Image.fromarray(pixels) for pixels in values.astype(np.uint8)]


def rendered(
    answers: Sequence[dict[str, Any] | Refusal], asked: Inference, *, entry: Entry
) -> dict[str, Any]:
    """The answer as the protocol has it.

    Raises:
        Refusal: One of the inputs has no answer.
    """
    told: list[dict[str, Any]] = []
    for answer in answers:
        if isinstance(answer, Refusal):
            raise answer
        told.append(answer)
    wanted = asked.outputs
    return {
        "model_name": entry.name,
        "model_version": entry.version,
        **({"id": asked.id} if asked.id is not None else {}),
        "outputs": [
            {
                "name": name,
                "datatype": kind,
                "shape": [len(told), *rest],
                "data": _values(name, told, entry.labels),
            }
            for name, (kind, rest) in output_tensors(entry).items()
            if wanted is None or name in wanted
        ],
    }


def _values(name: str, told: list[dict[str, Any]], labels: tuple[str, ...]) -> list[Any]:
    """One output's values of all answers, in row-major order."""
    match name:
        case "probabilities":
            return [one["probabilities"].get(label, 0.0) for one in told for label in labels]
        case "label":
            return [one.get("label") or ",".join(one.get("labels", ())) for one in told]
        case "entities":
            return [json.dumps(one["entities"], ensure_ascii=False) for one in told]
        case _:
            return [one[name] for one in told]
