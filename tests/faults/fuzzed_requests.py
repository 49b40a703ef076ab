"""Requests that are nearly right, drawn from a seed: bodies, heads, names and prompts."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.serve.material import image_file

FORMS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
FILES = tuple(image_file((200, 40, 10), size=(20, 30), form=form) for form in FORMS)
NAMES = (
    "colours",
    "lengths",
    "Colours",
    "colour",
    "",
    "a" * 3000,
    "%00",
    "..%2f..%2fetc",
    "é",
    "%",
)
VERBS = ("predict", "embed", "explain", "infer", "", "PREDICT", "predict:predict")
METHODS = ("POST",) * 12 + ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW")
MEDIA = (
    "application/json", "application/json; charset=utf-16", "image/png", "image/*", "text/plain",
    "text/plain; charset=utf-8", "text/plain; charset=klingon", "application/octet-stream", "",
    "multipart/form-data", "multipart/form-data; boundary=B", "multipart/form-data; boundary=",
    'multipart/form-data; boundary="B', "a/b; " + "x=y;" * 500, "\xff/\xfe",
)  # fmt: skip
PATHS = ("/", "/v1/models/", "/v2/models/x", "/metrics/..", "//", "/\0", "/v1/models/:predict")
QUERIES = (
    *(b"",) * 6, b"top=1", b"top=-1", b"top=%00", b"top=" + b"9" * 900, b"&&==", b"&" * 64,
    b"a=b&" * 900 + b"top=2",
)  # fmt: skip
WORDS = (
    "", " ", "a", "one text of some words", "\0", "\ud800", "\U0010ffff", "é", "\u202eabc", "{}",
    "a" * 3000, "NaN", "<script>", "../../etc/passwd", "${jndi:x}", "%s%n", "'; drop table",
)  # fmt: skip
NUMBERS = (0, 1, -1, 5, 2**31, 2**63, 10**400, 1.5, True, None, "5", [], {})
HEADERS = (
    ("x-request-timeout-seconds", "0"), ("x-request-timeout-seconds", "-1"),
    ("x-request-disconnect-disabled", "?1"), ("serve_multiplexed_model_id", "../x"),
    ("x-request-id", "a\x7fb"), ("x-request-id", "x" * 5000), ("content-encoding", "gzip"),
    ("transfer-encoding", "chunked, gzip"), ("expect", "200-maybe"), ("range", "bytes=0-"),
    ("authorization", "Basic eDp5"), ("x-api-key", "\xff" * 100), ("accept", "\x00"),
    ("host", "a b"), ("x-forwarded-for", "127.0.0.1" * 50), ("content-length", "99999999999"),
)  # fmt: skip


@dataclass
class Fuzzed:
    """One request."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    parts: list[bytes] = field(default_factory=list)


def fuzzed(rng: random.Random) -> Fuzzed:
    """The next request."""
    make = rng.choice((_json, _json, _form, _raw, _inference))
    path, media, body = make(rng)
    if rng.random() < 0.5:
        body = mutated(body, rng)
    if rng.random() < 0.1:
        media = rng.choice(MEDIA)
    if rng.random() < 0.1:
        path = rng.choice(
            (
                "/",
                "/v1/models/",
                "/v2/models/x",
                "/metrics/..",
                "//",
                "/\u0000",
                "/v1/models/:predict",
            )
        )
    headers = [("content-type", media), *rng.sample(HEADERS, rng.choice((0, 0, 0, 1, 3)))]
    return Fuzzed(
        method=rng.choice(METHODS),
        path=path,
        query=rng.choice(QUERIES),
        headers=[(name.encode(), value.encode("latin-1", "replace")) for name, value in headers],
        body=body,
        parts=_split(body, rng),
    )


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, cut out, doubled or put in."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(5):
            case 0 if found:
                found[at % len(found)] ^= 1 << rng.randrange(8)
            case 1:
                del found[at : at + rng.randint(1, 40)]
            case 2:
                found[at:at] = found[at : at + rng.randint(1, 40)]
            case 3:
                found[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                del found[at:]
    return bytes(found)


def _split(data: bytes, rng: random.Random) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 5))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _path(rng: random.Random) -> str:
    name = rng.choice(NAMES) if rng.random() < 0.15 else rng.choice(NAMES[:2])
    verb = rng.choice(VERBS) if rng.random() < 0.3 else "predict"
    return f"/v1/models/{name}:{verb}"


def _value(rng: random.Random, depth: int = 0) -> Any:
    match rng.randrange(7):
        case 0:
            return rng.choice(NUMBERS)
        case 1:
            return base64.b64encode(rng.choice(FILES)).decode()
        case 2 if depth < 4:
            return [_value(rng, depth + 1) for _ in range(rng.randrange(5))]
        case 3 if depth < 4:
            return {rng.choice(WORDS): _value(rng, depth + 1) for _ in range(rng.randrange(4))}
        case _:
            return rng.choice(WORDS)


def _item(rng: random.Random) -> Any:
    choices: tuple[Callable[[], Any], ...] = (
        lambda: {"image": base64.b64encode(rng.choice(FILES)).decode()},
        lambda: {"image": base64.b64encode(mutated(rng.choice(FILES), rng)).decode()},
        lambda: {"text": rng.choice(WORDS)},
        lambda: {"question": rng.choice(WORDS), "context": rng.choice(WORDS)},
        lambda: _value(rng),
    )
    return rng.choice(choices)()


def _json(rng: random.Random) -> tuple[str, str, bytes]:
    content: dict[str, Any] = {"inputs": [_item(rng) for _ in range(rng.choice((1, 1, 2, 5, 40)))]}
    for key in ("top", "labels", "templates", "label", "x"):
        if rng.random() < 0.1:
            content[key] = _value(rng)
    return _path(rng), "application/json", json.dumps(content).encode()


def _raw(rng: random.Random) -> tuple[str, str, bytes]:
    if rng.random() < 0.5:
        return _path(rng), "image/png", rng.choice(FILES)
    return _path(rng), "text/plain", rng.choice(WORDS).encode("utf-8", "surrogatepass")


def _form(rng: random.Random) -> tuple[str, str, bytes]:
    parts = []
    for _ in range(rng.choice((1, 2, 5, 50))):
        name = rng.choice(("input", "input", "input", "top", "label", "labels", "templates", "x"))
        text = rng.choice(WORDS).encode("utf-8", "surrogatepass")
        value = rng.choice(FILES) if name == "input" else text
        file = b'; filename="a"' if rng.random() < 0.5 else b""
        head = b'Content-Disposition: form-data; name="' + name.encode() + b'"' + file
        parts.append(b"--B\r\n" + head + b"\r\n\r\n" + value + b"\r\n")
    return _path(rng), "multipart/form-data; boundary=B", b"".join(parts) + b"--B--\r\n"


def _inference(rng: random.Random) -> tuple[str, str, bytes]:
    name = rng.choice(NAMES[:2])
    tensor = {
        "name": rng.choice(("image", "text", "x")),
        "datatype": rng.choice(("BYTES", "UINT8", "FP32")),
        "shape": rng.choice(
            ([1], [2], [1, 2, 2, 3], [], [-1], ["a"], [2**40], [1] * 8, [2**31 - 1] * 2000)
        ),
        "data": rng.choice(([base64.b64encode(FILES[0]).decode()], [0] * 12, ["a"], [None], [[1]])),
    }
    if rng.random() < 0.3:
        tensor[rng.choice(list(tensor))] = _value(rng)
    content = {"id": "a", "inputs": [tensor]}
    if rng.random() < 0.1:
        content["outputs"] = _value(rng)
    return f"/v2/models/{name}/infer", "application/json", json.dumps(content).encode()
