"""Clients that ask over and over on open connections, at as little cost as Python allows."""

from __future__ import annotations

import json
import random
import socket
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Answers:
    """What came back.

    Attributes:
        seconds: The load lasted.
        statuses: Responses by status; 0 where the connection broke.
        latencies_s: Of the responses with status 200.
    """

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """Requests answered in a second."""
        return self.statuses[200] / self.seconds

    def percentile_ms(self, percent: int) -> float:
        """Of the latencies."""
        if len(self.latencies_s) < 2:
            return float("nan")
        return 1000 * statistics.quantiles(self.latencies_s, n=100)[percent - 1]


def ask(port: int, request: bytes) -> int:
    """Send a request once; the status of its response."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(request)
        return _status(connection)[0]


def times_ms(port: int, request: bytes, *, n: int) -> list[tuple[float, float]]:
    """Milliseconds of n requests on one connection, and of those what our handler says it took.

    A proxy that reloads its configuration, as HAProxy does after a start, closes connections with
    an answer; another is opened.
    """
    found: list[tuple[float, float]] = []
    while len(found) < n:
        with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keeps = True
            while keeps and len(found) < n:
                began_s = time.perf_counter()
                connection.sendall(request)
                status, keeps, body = _response(connection)
                whole_ms = 1000 * (time.perf_counter() - began_s)
                if status != 200:
                    raise ConnectionError(f"status {status}")
                found.append((whole_ms, float(json.loads(body)["timing_ms"]["total"])))
    return found


def load(port: int, *requests: bytes, clients: int, seconds: float) -> Answers:
    """Send requests from so many clients at once for so long; each sends one more when answered.

    Args:
        port: Of an endpoint on this machine.
        requests: Head and body of each; which comes next is drawn evenly.
        clients: Threads with an open connection each.
        seconds: After which no request begins.
    """
    answers, lock = Answers(), threading.Lock()
    stop_s = time.perf_counter() + seconds

    def ask_on(seed: int) -> None:
        rng = random.Random(seed)
        statuses: Counter[int] = Counter()
        latencies_s = []
        connection = None
        while (started_s := time.perf_counter()) < stop_s:
            try:
                if connection is None:
                    connection = socket.create_connection(("127.0.0.1", port), timeout=120)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(rng.choice(requests))
                status, keeps = _status(connection)
            except OSError:
                status, keeps = 0, False
            statuses[status] += 1
            if status == 200:
                latencies_s.append(time.perf_counter() - started_s)
            if not keeps and connection is not None:
                connection.close()
                connection = None
        with lock:
            answers.statuses.update(statuses)
            answers.latencies_s += latencies_s

    threads = [threading.Thread(target=ask_on, args=(seed,)) for seed in range(clients)]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.seconds = time.perf_counter() - began_s
    return answers


def _status(connection: socket.socket) -> tuple[int, bool]:
    """The status of a response that is read to its end, and whether the connection stays."""
    return _response(connection)[:2]


def _response(connection: socket.socket) -> tuple[int, bool, bytes]:
    """The same with the body; of one in chunks, the chunks as they came."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)
    if length is None:
        while not rest.endswith(b"0\r\n\r\n"):
            rest += _more(connection)
    else:
        while len(rest) < length:
            rest += _more(connection)
    return int(head[9:12]), b"connection: close" not in lines, rest


def _more(connection: socket.socket) -> bytes:
    part = connection.recv(65_536)
    if not part:
        raise ConnectionError("closed in mid-response")
    return part
