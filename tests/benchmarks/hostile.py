"""S9: what good clients notice of five hundred that dribble."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.benchmarks.bundles import write_random_bundle
from tests.benchmarks.endpoints import endpoint, free_port, request_of
from tests.benchmarks.harness import Measured
from tests.benchmarks.http_load import load
from tests.benchmarks.serving import BACKBONES, photograph

DRIBBLING = 500
SECONDS = 25.0  # longer than the 15 s that a body may take to arrive
GOOD = 4


def s9(folder: Path) -> list[Measured]:
    """Good clients alone, and beside those that send a byte a second, behind HAProxy."""
    threads = os.cpu_count() or 1
    backbone = BACKBONES[0]
    bundle = write_random_bundle(folder / backbone, backbone)
    request = request_of("exposed", photograph())
    port = free_port()
    with endpoint("exposed", bundle.path, backbone, port=port, threads=threads):
        load(port, request, clients=GOOD, seconds=5)
        alone = load(port, request, clients=GOOD, seconds=SECONDS)
        with Dribbling(port, request, n=DRIBBLING) as slow:
            beside = load(port, request, clients=GOOD, seconds=SECONDS)
    figures = {
        "alone_p99_ms": alone.percentile_ms(99),
        "beside_p99_ms": beside.percentile_ms(99),
        "alone_per_s": alone.per_s,
        "beside_per_s": beside.per_s,
        "dribbling": DRIBBLING,
        "their_statuses": dict(slow.statuses),
    }
    wrong = sum(n for status, n in beside.statuses.items() if status != 200)
    ratio = figures["beside_p99_ms"] / figures["alone_p99_ms"]
    return [
        Measured("S9", "p99 of good clients beside 500 dribbling ones / alone", ratio, "≤ 2×",
                 figures),
        Measured("S9", "good requests without an answer", float(wrong), "≤ 0", unit=""),
        Measured("S9", "dribbling clients that got anything but a 408 or a closed connection",
                 float(sum(slow.statuses[s] for s in slow.statuses if s not in ("408", "closed"))),
                 "≤ 0", unit=""),
    ]  # fmt: skip


class Dribbling:
    """Clients that send a request's head and then a byte a second; who is cut comes again.

    Attributes:
        statuses: What they were told, `closed` where nothing.
    """

    def __init__(self, port: int, request: bytes, *, n: int) -> None:
        self.statuses: Counter[str] = Counter()
        self._port, self._n = port, n
        self._head, _, self._body = request.partition(b"\r\n\r\n")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            sent = {self._joined(selector): 0 for _ in range(self._n)}
            while not self._stop.is_set():
                second_s = time.monotonic() + 1
                for one in list(sent):
                    try:
                        one.send(self._body[sent[one] : sent[one] + 1])
                        sent[one] += 1
                    except OSError:
                        self._cut(one, selector, sent)
                while (left_s := second_s - time.monotonic()) > 0 and not self._stop.is_set():
                    for key, _ in selector.select(left_s):
                        self._cut(key.fileobj, selector, sent)  # type: ignore[arg-type]
            for one in sent:
                one.close()

    def _joined(self, selector: selectors.BaseSelector) -> socket.socket:
        one = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        one.sendall(self._head + b"\r\n\r\n")
        selector.register(one, selectors.EVENT_READ)
        return one

    def _cut(
        self, one: socket.socket, selector: selectors.BaseSelector, sent: dict[socket.socket, int]
    ) -> None:
        try:
            told = one.recv(65_536)
        except OSError:
            told = b""
        self.statuses[told[9:12].decode() if told.startswith(b"HTTP/") else "closed"] += 1
        selector.unregister(one)
        one.close()
        del sent[one]
        sent[self._joined(selector)] = 0
