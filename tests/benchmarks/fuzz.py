"""S8: requests that are nearly right, over HTTP, to an endpoint of an image and a text model."""

from __future__ import annotations

import http.client
import os
import random
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks.bundles import write_random_bundle
from tests.benchmarks.endpoints import deploying, free_port, running
from tests.benchmarks.harness import Measured
from tests.benchmarks.serving import BACKBONES, OURS, resident_bytes
from tests.faults.fuzzed_requests import Fuzzed, fuzzed
from tests.faults.serving_load import processes
from tests.orchestrator.bundle.small_bundles import text_bundle

REQUESTS, WARMING, CLIENTS = 20_000, 2_000, 8
REPLICA = "ServeReplica"
FRAMING = (b"content-length", b"transfer-encoding")  # what is sent says truly how long it is


def s8(folder: Path) -> list[Measured]:
    """Twenty thousand, behind the plain proxy."""
    image = write_random_bundle(folder / "colours", BACKBONES[0])
    text = text_bundle(folder / "lengths", image.experiment(), image.record())
    port, threads = free_port(), os.cpu_count() or 1
    bundles = {"colours": image.path, "lengths": text.path}
    words = deploying("ours", bundles, port=port, threads=threads)
    with running(words, port=port, threads=threads) as pid:
        fuzz(port, seed=1, n=WARMING)
        before, bytes_before = processes(REPLICA, started_by=pid), resident_bytes(REPLICA)
        statuses = fuzz(port, seed=2, n=REQUESTS)
        grown = resident_bytes(REPLICA) - bytes_before
        after = processes(REPLICA, started_by=pid)
    beside = {"statuses": {str(status): n for status, n in sorted(statuses.items())}}
    what = f"{REQUESTS:,} fuzzed requests behind {OURS['ours']}"
    failed = sum(n for status, n in statuses.items() if status >= 500 or status == 0)
    return [
        Measured("S8", f"{what}: 5xx, or no response", float(failed), "≤ 0", beside, unit=""),
        Measured(
            "S8", f"{what}: restarted replicas", float(len({*after} ^ {*before})), "≤ 0", unit=""
        ),
        Measured("S8", f"{what}: growth of the replica", grown / 2**20, "≤ 50 MB", unit=" MB"),
    ]  # fmt: skip


def fuzz(port: int, *, seed: int, n: int) -> Counter[int]:
    """Responses to requests of a seed by status; 0 where there was none."""

    def ask_on(client: int) -> Counter[int]:
        rng = random.Random(seed * CLIENTS + client)
        return Counter(_status(port, fuzzed(rng)) for _ in range(n // CLIENTS))

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(ask_on, range(CLIENTS)), Counter())


def _status(port: int, request: Fuzzed) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(_on_the_wire(request))
            response = http.client.HTTPResponse(connection, method=request.method)
            response.begin()
            response.read()
        except (OSError, http.client.HTTPException):
            return 0
        return response.status


def _on_the_wire(request: Fuzzed) -> bytes:
    target = request.path.encode() + (b"?" + request.query if request.query else b"")
    lines = [request.method.encode() + b" " + target + b" HTTP/1.1", b"Host: fuzz"]
    lines += [b": ".join(pair) for pair in request.headers if pair[0] not in FRAMING]
    lines += [b"Content-Length: %d" % len(request.body), b"Connection: close", b"", b""]
    return b"\r\n".join(lines) + request.body
