"""Load on an endpoint while something happens to it, and what every request came to."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from serve.client import Client, EndpointError

Ask = Callable[[], dict[str, Any]]


class Refused(Exception):  # noqa: N818
    """A request without an answer."""


def bare(url: str, name: str, image: bytes, *, key: str | None = None) -> Ask:
    """A client that never asks twice."""
    headers = {"Authorization": f"Bearer {key}"} if key else None
    http = httpx.Client(base_url=url, headers=headers, timeout=30)

    def ask() -> dict[str, Any]:
        try:
            response = http.post(f"/v1/models/{name}:predict", content=image)
        except httpx.TransportError as err:
            raise Refused(type(err).__name__, repr(err)) from err
        if response.status_code != 200:
            raise Refused(str(response.status_code), response.text[:500])
        answer: dict[str, Any] = response.json()
        assert response.headers["x-model-version"] == answer["version"]
        return answer

    return ask


def retrying(url: str, name: str, image: bytes, **settings: Any) -> Ask:
    """Our client, as it comes but for what `settings` says."""
    client = Client(url, **settings)

    def ask() -> dict[str, Any]:
        try:
            return client.predict(name, image).model_dump(mode="json")
        except EndpointError as err:
            raise Refused(type(err).__name__, str(err)) from err

    return ask


@dataclass
class Load:
    """Clients that ask one image over and over, each once the last answer is there.

    Attributes:
        clients: At once.
        every_s: From a client's request to its next, if that has been answered by then.
        ended: Requests by what they came to.
        faults: What was told where there was no answer.
        versions: The answers' probabilities by version and digest.
        seconds: Of each request that was answered.
    """

    clients: list[Ask]
    every_s: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    versions: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask_on, args=(ask,)) for ask in self.clients]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def total(self) -> int:
        """Requests so far."""
        return sum(self.ended.values())

    def percentile_ms(self, percent: int) -> float:
        """Of the answered requests' time."""
        return 1000 * statistics.quantiles(self.seconds, n=100)[percent - 1]

    def wait_for(self, more: int, *, patience_s: float = 120.0) -> None:
        """Until so many more requests have ended."""
        wanted, deadline_s = self.total + more, time.monotonic() + patience_s
        while self.total < wanted:
            assert time.monotonic() < deadline_s, f"only {self.total} requests ended"
            time.sleep(0.02)

    def _ask_on(self, ask: Ask) -> None:
        while not self._stop.is_set():
            started_s = time.perf_counter()
            try:
                answer = ask()
            except Refused as err:
                outcome, fault = err.args
                with self._lock:
                    self.ended[outcome] += 1
                    self.faults.append(fault)
            else:
                which = (answer["version"], answer["digest"])
                told = str(answer["answers"])
                with self._lock:
                    self.ended["answered"] += 1
                    self.versions.setdefault(which, set()).add(told)
                    self.seconds.append(time.perf_counter() - started_s)
            time.sleep(max(0.0, started_s + self.every_s - time.perf_counter()))


def processes(title: str, *, started_by: int | None = None) -> list[int]:
    """Ids of the processes with these words in their command, of all that a process started.

    That process is the tests' own, or that of the id `started_by`.
    """
    starter = started_by or os.getpid()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes()
                ours = title.encode() in words and starter in _ancestors(int(folder.name))
            except OSError:
                continue
            if ours:
                found.append(int(folder.name))
    return sorted(found)


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = _parent(pid)
        yield pid


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)
