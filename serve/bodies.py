"""From the bytes of a request to the inputs in it, with every limit kept on the way.

What is wrong with the request as a whole raises; what is wrong with one input stands in its place,
so that it fails alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from python_multipart.multipart import parse_options_header

from orchestrator.errors import listing, nearest

from .contract import Accepts
from .forms import field_text, field_texts, read_form
from .items import Checked, checked_image, checked_question, checked_text, from_base64
from .limits import Limits
from .options import (
    check_count,
    checked_label,
    checked_templates,
    checked_texts,
    checked_top,
    parse_top,
)
from .problems import Refusal, brief

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


_BYTES = ("application/octet-stream", "")  # what a Content-Type of unspecified bytes is


@dataclass(frozen=True)
class Body:
    """A request's body as it came.

    Attributes:
        media: Media type in lower case, without parameters; empty when none was given.
        parameters: Of the media type, such as `charset`.
        data: The bytes.
        top: From the query.
    """

    media: str
    parameters: Mapping[str, str]
    data: bytes
    top: int | None = None


@dataclass(frozen=True)
class Submission:
    """What a request asks about which inputs; None where it does not say."""

    items: tuple[Checked, ...]
    top: int | None = None
    label: str | None = None
    labels: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None


class ClientGone(Exception):  # noqa: N818  (nobody is left to be told)
    """The client closed the connection before its request was complete."""


async def read_body(
    receive: Receive, headers: Mapping[str, str], *, limits: Limits, take: Callable[[int], None]
) -> bytes:
    """The whole body.

    Args:
        receive: ASGI's.
        headers: Names in lower case.
        limits: `body_bytes` and `read_s`.
        take: Called with the size of each part before it is kept; may refuse.

    Raises:
        ClientGone: The connection ended first.
        Refusal: It is too long, too slow, or compressed.
    """
    _check_announced(headers, limits)
    parts: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(limits.read_s):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                length += len(part)
                if length > limits.body_bytes:
                    raise _too_long(f"The body has more than {limits.body_bytes:,} bytes")
                take(len(part))
                parts.append(part)
                more = message.get("more_body", False)
    except TimeoutError as err:
        raise Refusal(
            "slow-body",
            f"{length:,} bytes of the body came in {limits.read_s:g} s, the time that it has. Send "
            "less, or over a faster connection",
        ) from err
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_announced(headers: Mapping[str, str], limits: Limits) -> None:
    announced = headers.get("content-length", "0")
    if not (announced.isascii() and announced.isdecimal()):
        raise Refusal("malformed", f"Content-Length: {brief(announced)} is no number of bytes")
    if len(announced) > 18 or int(announced) > limits.body_bytes:
        raise _too_long(f"The body has {announced[:30]} bytes, more than {limits.body_bytes:,}")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refusal(
            "media-type",
            f"Content-Encoding: {brief(encoding)} is not taken. Send it as it is",
        )


def _too_long(what: str) -> Refusal:
    return Refusal("too-long", f"{what}. Send fewer or smaller inputs at once")


def parse(body: Body, *, accepts: Accepts, limits: Limits) -> Submission:
    """The inputs in a body, of which a model takes one kind.

    Raises:
        Refusal: The body as a whole cannot be read, or brings too much.
    """
    match body.media:
        case "application/json":
            return _from_json(body, accepts, limits)
        case "multipart/form-data" if accepts != "question":
            return _from_form(body, accepts, limits)
        case "text/plain" | "application/octet-stream" | "" if accepts == "text":
            return _lone(checked_text(_decoded(body), limits), body)
        case media if accepts == "image" and (media in _BYTES or media.startswith("image/")):
            return _lone(checked_image(body.data, limits), body)
    raise Refusal("media-type", _media_advice(body.media, accepts))


def _media_advice(media: str, accepts: Accepts) -> str:
    allowed = {
        "image": "image/*, application/octet-stream, multipart/form-data or application/json",
        "text": "text/plain, application/octet-stream, multipart/form-data or application/json",
        "question": 'application/json: {"inputs": [{"question": "…", "context": "…"}]}',
    }[accepts]
    given = brief(media) if media else "No Content-Type"
    return f"{given} is not what this model takes, one {accepts} or several. Use {allowed}"


def _lone(item: Checked, body: Body) -> Submission:
    return Submission((item,), top=body.top)


def _decoded(body: Body) -> Checked | bytes:
    """A text body in its charset; without one, as text files are read."""
    charset = body.parameters.get("charset", "")
    if charset.lower() not in ("utf-8", "us-ascii", "iso-8859-1", "windows-1252", "utf-16", ""):
        raise Refusal("media-type", f"charset={brief(charset)} is not known. Use UTF-8")
    if not charset:
        return body.data
    try:
        return body.data.decode(charset)
    except UnicodeDecodeError as err:
        return Refusal("undecodable", f"The text is not {charset}: {err.reason} at {err.start}")


_KEYS = ("inputs", "top", "label", "labels", "templates")
_ITEM_KEYS: dict[Accepts, frozenset[str]] = {
    "image": frozenset({"image"}),
    "text": frozenset({"text"}),
    "question": frozenset({"question", "context"}),
}


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        Refusal: It is none.
    """
    try:
        found = json.loads(data, parse_constant=_no_constant)
    except RecursionError as err:
        raise Refusal("malformed", "The JSON is nested too deeply") from err
    except ValueError as err:
        raise Refusal("malformed", f"The body is no JSON: {str(err)[:200]}") from err
    if not isinstance(found, dict):
        raise Refusal("malformed", f"The body is {brief(found)}, not a JSON object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _from_json(body: Body, accepts: Accepts, limits: Limits) -> Submission:
    content = json_object(body.data)
    for key in content:
        if key not in _KEYS:
            raise Refusal(
                "malformed",
                f"{brief(key)}: unknown key. Allowed: {listing(_KEYS)}.{nearest(key[:80], _KEYS)}",
            )
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise Refusal("malformed", f"inputs: {brief(inputs)} is no list of inputs")
    check_count(len(inputs), limits)
    return Submission(
        tuple(_json_item(item, accepts, limits) for item in inputs),
        top=body.top if content.get("top") is None else checked_top(content["top"]),
        label=checked_label(content.get("label"), limits),
        labels=checked_texts("labels", content.get("labels"), limits.labels, limits),
        templates=checked_templates(content.get("templates"), limits),
    )


def _json_item(item: object, accepts: Accepts, limits: Limits) -> Checked:
    wanted = _ITEM_KEYS[accepts]
    if not isinstance(item, dict) or item.keys() != wanted:
        given = listing(map(brief, item), most=4) if isinstance(item, dict) else brief(item)
        keys = " and ".join(f"`{key}`" for key in sorted(wanted, reverse=True))
        return Refusal(
            "unsuitable", f"The input is {given or 'empty'}. This model takes an object with {keys}"
        )
    if accepts == "question":
        return checked_question(item, limits)
    (value,) = item.values()
    if not isinstance(value, str):
        return Refusal("unsuitable", f"`{accepts}` is {brief(value)}, not a text")
    if accepts == "text":
        return checked_text(value, limits)
    data = from_base64(value)
    if data is None:
        return Refusal("undecodable", f"`image` is {brief(value)}, which is no base64")
    return checked_image(data, limits)


def _from_form(body: Body, accepts: Accepts, limits: Limits) -> Submission:
    values = read_form(body.data, body.parameters.get("boundary", ""), limits)
    if not values["input"]:
        raise Refusal("malformed", "The form has no part `input`. As curl: -F input=@FILE")
    check = checked_image if accepts == "image" else checked_text
    return Submission(
        tuple(check(data, limits) for data in values["input"]),
        top=parse_top(field_text(values["top"][-1])) if values["top"] else body.top,
        label=checked_label(field_text(values["label"][-1]), limits) if values["label"] else None,
        labels=checked_texts("labels", field_texts(values["labels"]), limits.labels, limits),
        templates=checked_templates(field_texts(values["templates"]), limits),
    )


def media_type(header: str) -> tuple[str, dict[str, str]]:
    """A Content-Type's media type, in lower case, and its parameters."""
    kind, options = parse_options_header(header.encode("latin-1", "replace"))
    found = {key.decode("latin-1"): value.decode("latin-1") for key, value in options.items()}
    return kind.decode("latin-1").strip().lower(), found
