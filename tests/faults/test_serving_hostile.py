"""Hostile requests: every one gets a typed answer, none fails the server, memory stays flat."""

from __future__ import annotations

import asyncio
import io
import json
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve.handler import Handler
from serve.limits import Limits
from tests.faults.fuzzed_requests import Fuzzed, fuzzed
from tests.serve.material import served

# Pillow warns of what it finds in damaged files; as an error that would be our tests' doing.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

PREDICT = "/v1/models/colours:predict"


@pytest.fixture
def handler(tmp_path: Path) -> Handler:
    return served(tmp_path / "served", limits=Limits(read_s=2))


async def answered(handler: Handler, request: Fuzzed) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of the response, as a server would be given them."""
    messages = [
        {"type": "http.request", "body": part, "more_body": i < len(request.parts) - 1}
        for i, part in enumerate(request.parts or [request.body])
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": request.method,
        "path": request.path,
        "query_string": request.query,
        "headers": request.headers,
    }
    await handler(scope, receive, send)
    start, *rest = sent
    return start["status"], dict(start["headers"]), b"".join(m.get("body", b"") for m in rest)


def resident_bytes() -> int:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def fuzz(handler: Handler, *, seed: int, n: int) -> Counter[int]:
    """Ask `n` requests of a seed; how they ended."""
    rng = random.Random(seed)

    async def all_of_them() -> Counter[int]:
        ended: Counter[int] = Counter()
        for i in range(n):
            request = fuzzed(rng)
            status, headers, body = await answered(handler, request)
            ended[status] += 1
            where = (seed, i, request.method, request.path[:80], status, body[:300])
            assert status < 500, where
            if status >= 400:
                assert headers[b"content-type"] == b"application/problem+json", where
                problem = json.loads(body)
                assert problem["status"] == status, where
                assert len(body) < 20_000, where
            for secret in (b"Traceback", b"site-packages", b".py", b"/tmp/"):
                assert secret not in body or secret in request.body, where
        return ended

    return asyncio.run(all_of_them())


def test_fuzzed_requests_are_answered_or_refused_and_never_fail_the_server(
    handler: Handler,
) -> None:
    ended = fuzz(handler, seed=1, n=1500)
    # Most of what the server can say has been said, or the generator has gone stale.
    assert {200, 400, 404, 405, 413, 415, 422} <= set(ended), ended


# Bombs: a few bytes that decode to many.


def png_bomb(side: int) -> bytes:
    """A PNG of side × side pixels in a few kilobytes, without ever making them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    row = b"\0" * (side // 8 + 1)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A PNG whose compressed comment is 200 MB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b"\0" * (1 << 20)) for _ in range(200)) + packer.flush()
    body = b"zTXt" + b"a\0\0" + packed
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    data = small.getvalue()
    bomb = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + bomb + data[33:]


def animation(form: str, *, frames: int, **options: Any) -> bytes:
    """Frames of 2,000 × 2,000 pixels, each of another colour."""
    pictures = [Image.new("RGB", (2000, 2000), (8 * i, 255 - 8 * i, 0)) for i in range(frames)]
    file = io.BytesIO()
    pictures[0].save(file, form, save_all=True, append_images=pictures[1:], **options)
    return file.getvalue()


def wide_gif() -> bytes:
    """A GIF that says it is 65,535 × 65,535."""
    small = io.BytesIO()
    Image.new("P", (8, 8)).save(small, "GIF")
    data = small.getvalue()
    return data[:6] + b"\xff\xff\xff\xff" + data[10:]


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: png_bomb(20_000),
        lambda: png_bomb(8000),
        text_bomb,
        wide_gif,
        lambda: animation("GIF", frames=4),
        lambda: animation("WEBP", frames=5),
        lambda: animation("TIFF", frames=5, compression="tiff_lzw"),
    ],
    ids=["png 400 MP", "png 64 MP", "png text", "gif wide", "gif", "webp", "tiff"],
)
def test_a_bomb_is_refused_quickly_and_takes_no_memory(
    handler: Handler, bomb: Callable[[], bytes]
) -> None:
    data = bomb()
    assert len(data) < 4 << 20
    before = resident_bytes()
    started_s = time.perf_counter()
    request = Fuzzed("POST", PREDICT, b"", [(b"content-type", b"image/png")], data)
    status, _, body = asyncio.run(answered(handler, request))
    assert status == 422, body[:300]
    assert time.perf_counter() - started_s < 1
    assert resident_bytes() - before < 64 << 20


def test_ten_thousand_labels_and_a_prompt_of_a_megabyte_are_refused(handler: Handler) -> None:
    for labels in ([str(i) for i in range(10_000)], ["a" * (1 << 20)]):
        content = json.dumps({"inputs": [{"image": ""}], "labels": labels}).encode()
        headers = [(b"content-type", b"application/json")]
        status, _, _ = asyncio.run(
            answered(handler, Fuzzed("POST", PREDICT, b"", headers, content))
        )
        assert status == 422
