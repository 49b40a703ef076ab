"""Hostile requests: every one gets a typed answer, none fails the server, memory stays flat."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.handler import Handler
from serve.limits import Limits
from tests.faults.bombs import BOMBS
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


@pytest.mark.parametrize("bomb", list(BOMBS.values()), ids=list(BOMBS))
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
