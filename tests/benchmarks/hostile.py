"""S9: what good clients notice of five hundred that dribble, and of one that sends bombs."""

from __future__ import annotations

import json
import os
import select
import selectors
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.benchmarks.bundles import write_random_bundle
from tests.benchmarks.endpoints import endpoint, free_port, request_of
from tests.benchmarks.harness import Measured
from tests.benchmarks.http_load import ask, load
from tests.benchmarks.serving import BACKBONES, photograph
from tests.faults.bombs import BOMBS

DRIBBLING = 500
SECONDS = 25.0  # longer than the 15 s that a body may take to arrive
GOOD = 4


def s9(folder: Path) -> list[Measured]:
    """Good clients alone, beside those that send a byte a second, and beside bombs.

    Behind HAProxy.
    """
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
        with Bombing(port, request) as hostile:
            bombed = load(port, request, clients=GOOD, seconds=SECONDS)
    figures = {
        "alone_p99_ms": alone.percentile_ms(99),
        "beside_p99_ms": beside.percentile_ms(99),
        "alone_per_s": alone.per_s,
        "beside_per_s": beside.per_s,
        "dribbling": DRIBBLING,
        "their_statuses": dict(slow.statuses),
        "beside_bombs_p99_ms": bombed.percentile_ms(99),
        "statuses_of_bombs": {name: dict(told) for name, told in hostile.statuses.items()},
    }
    wrong = sum(
        n for load in (beside, bombed) for status, n in load.statuses.items() if status != 200
    )
    bombs_ratio = figures["beside_bombs_p99_ms"] / figures["alone_p99_ms"]
    ratio = figures["beside_p99_ms"] / figures["alone_p99_ms"]
    return [
        Measured("S9", "p99 of good clients beside 500 dribbling ones / alone", ratio, "≤ 2×",
                 figures),
        Measured("S9", "p99 of good clients beside one that sends bodies of 1 GB, image bombs, "
                 "10,000 labels and prompts of 1 MB / alone", bombs_ratio, "≤ 2×"),
        Measured("S9", "of these, answered otherwise than 413 or 422", float(hostile.strange),
                 "≤ 0", unit=""),
        Measured("S9", "good requests without an answer", float(wrong), "≤ 0", unit=""),
        Measured("S9", "dribbling clients that got anything but a 408 or a closed connection",
                 float(sum(slow.statuses[s] for s in slow.statuses if s not in ("408", "closed"))),
                 "≤ 0", unit=""),
    ]  # fmt: skip


class _Beside:
    """What a thread does for the length of the block."""

    def __init__(self) -> None:
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
        raise NotImplementedError


class Bombing(_Beside):
    """A client that sends what must be refused, one after the other.

    Attributes:
        statuses: What each kind was told; 0 where nothing.
    """

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        kinds = [*BOMBS, "10,000 labels", "1 MB prompt", "1 GB"]
        self.statuses: dict[str, Counter[int]] = {name: Counter() for name in kinds}
        head = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
        self._head = [line for line in head if not line.startswith(b"Content-")]
        super().__init__()

    @property
    def strange(self) -> int:
        """Answers that are no refusal of what was too much."""
        return sum(
            n for told in self.statuses.values() for s, n in told.items() if s not in (413, 422)
        )

    def _run(self) -> None:
        requests = {name: self._request(b"image/png", bomb()) for name, bomb in BOMBS.items()}
        labels = {"10,000 labels": [str(i) for i in range(10_000)], "1 MB prompt": ["a" * 2**20]}
        for name, some in labels.items():
            body = json.dumps({"inputs": [{"image": ""}], "labels": some}).encode()
            requests[name] = self._request(b"application/json", body)
        while not self._stop.is_set():
            for name, request in requests.items():
                self.statuses[name][ask(self._port, request)] += 1
            self.statuses["1 GB"][self._gigabyte()] += 1

    def _gigabyte(self) -> int:
        """Send on until there is an answer; its status."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as one:
            one.sendall(self._request(b"image/png", b"", length=1 << 30))
            one.setblocking(False)
            for _ in range(1 << 14):
                readable, writable, _ = select.select([one], [one], [], 60)
                if readable:
                    break
                if writable:
                    with suppress(BlockingIOError):
                        one.send(bytes(1 << 16))
            try:
                told = one.recv(12)
            except OSError:
                return 0
            return int(told[9:12] or 0)

    def _request(self, media: bytes, body: bytes, *, length: int | None = None) -> bytes:
        sized = len(body) if length is None else length
        lines = [*self._head, b"Content-Type: " + media, b"Content-Length: %d" % sized]
        return b"\r\n".join([*lines, b"", b""]) + body


class Dribbling(_Beside):
    """Clients that send a request's head and then a byte a second; who is cut comes again.

    Attributes:
        statuses: What they were told, `closed` where nothing.
    """

    def __init__(self, port: int, request: bytes, *, n: int) -> None:
        self.statuses: Counter[str] = Counter()
        self._port, self._n = port, n
        self._head, _, self._body = request.partition(b"\r\n\r\n")
        super().__init__()

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
