"""KServe's open inference protocol, version 2 (REST): tensors in, tensors out.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image

from .bodies import Submission, json_object
from .entry import Entry
from .items import Checked, Item, checked_image, checked_text, from_base64
from .options import check_count
from .problems import Refusal, brief

SERVER = {"name": "transfer-orchestrator", "extensions": []}


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


def metadata(entry: Entry) -> dict[str, Any]:
    """What a model takes and gives."""
    return {
        "name": entry.name,
        "versions": [entry.version],
        "platform": "transfer-orchestrator",
        "inputs": [
            {"name": name, "datatype": "BYTES", "shape": [-1]} for name in input_names(entry)
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(entry.labels)]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
        "parameters": {"labels": list(entry.labels)},
    }


def input_names(entry: Entry) -> tuple[str, ...]:
    """The names of the tensors that one request brings."""
    return ("question", "context") if entry.accepts == "question" else (entry.accepts,)


def parse(data: bytes, *, entry: Entry) -> Inference:
    """The inputs in a request.

    Raises:
        Refusal: The protocol has no place for a problem of one input, so any refuses the request.
    """
    if entry.accepts == "question":
        raise Refusal("unoffered", f"{entry.name} answers at /v1/models/{entry.name}:predict alone")
    content = json_object(data)
    tensors = content.get("inputs")
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise Refusal("malformed", f"inputs: this model takes one tensor, `{entry.accepts}`")
    items = _items(tensors[0], entry)
    for item in items:
        if isinstance(item, Refusal):
            raise item
    identity = content.get("id")
    if not isinstance(identity, str | None):
        raise Refusal("malformed", f"id: {brief(identity)} is no text")
    return Inference(Submission(tuple(items)), identity, _wanted(content.get("outputs")))


def _wanted(outputs: object) -> frozenset[str] | None:
    if outputs is None:
        return None
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise Refusal("malformed", f"outputs: {brief(outputs)} is no list of tensors")
    names = [one.get("name") for one in outputs]
    for name in names:
        if name not in ("probabilities", "label"):
            raise Refusal(
                "unsuitable", f"outputs: there is no {brief(name)}. Ask for probabilities or label"
            )
    return frozenset(map(str, names))


def _items(tensor: dict[str, Any], entry: Entry) -> Sequence[Checked]:
    name, kind, shape = (tensor.get(key) for key in ("name", "datatype", "shape"))
    if name != entry.accepts:
        raise Refusal("unsuitable", f"inputs: no tensor {brief(name)}. Send `{entry.accepts}`")
    if not isinstance(shape, list) or not all(_is_length(side) for side in shape):
        raise Refusal("malformed", f"shape: {brief(shape)} is no list of lengths")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise Refusal(
            "malformed", "data: there is none in the JSON, and the binary extension is not offered"
        )
    match kind:
        case "BYTES":
            return _strings(data, shape, entry)
        case "UINT8" if entry.accepts == "image":
            return _pixels(data, shape, entry)
        case _:
            allowed = "BYTES or UINT8" if entry.accepts == "image" else "BYTES"
            raise Refusal("unsuitable", f"datatype: {brief(kind)} is not taken. Use {allowed}")


def _is_length(side: object) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 0 < side < 1 << 31


def _strings(data: list[Any], shape: list[int], entry: Entry) -> Sequence[Checked]:
    if math.prod(shape) != len(data) or not all(isinstance(text, str) for text in data):
        raise Refusal("malformed", f"data: not the {shape} strings that `shape` says")
    check_count(len(data), entry.limits)
    if entry.accepts == "text":
        return [checked_text(text, entry.limits) for text in data]
    return [checked_image(_bytes(text), entry.limits) for text in data]


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
        values = np.asarray(data, np.int64).reshape(shape)
    except (ValueError, TypeError, OverflowError) as err:
        raise Refusal("malformed", f"data: not the {shape} numbers that `shape` says") from err
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
    rows: list[list[float]] = []
    names: list[str] = []
    for answer in answers:
        if isinstance(answer, Refusal):
            raise answer
        if "probabilities" not in answer:
            raise Refusal("unoffered", f"{entry.name} gives no probabilities of labels")
        rows.append([answer["probabilities"].get(label, 0.0) for label in entry.labels])
        names.append(answer.get("label") or ",".join(answer.get("labels", ())))
    tensors = [
        _tensor(
            "probabilities", "FP32", [len(rows), len(entry.labels)], list(chain.from_iterable(rows))
        ),
        _tensor("label", "BYTES", [len(names)], names),
    ]
    wanted = asked.outputs
    return {
        "model_name": entry.name,
        "model_version": entry.version,
        **({"id": asked.id} if asked.id is not None else {}),
        "outputs": [one for one in tensors if wanted is None or one["name"] in wanted],
    }


def _tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}
