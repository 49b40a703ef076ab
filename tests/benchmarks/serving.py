"""S1, S7 and S10: requests a second over HTTP; what is left of them when far too many come; where
the time of one goes.
"""

from __future__ import annotations

import io
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.predictor import load_predictor
from tests.benchmarks.bundles import write_random_bundle
from tests.benchmarks.endpoints import endpoint, free_port, request_of
from tests.benchmarks.harness import Measured
from tests.benchmarks.http_load import Answers, load, times_ms

BACKBONES = ("mobilenetv3_small_100", "tf_efficientnet_lite0")
CLIENTS = (1, 8, 32)
SECONDS = 6.0
ROUNDS = 3  # of S1; of its ratios the median counts
ROUND_S = 4.0
# The goal of ours / theirs. Each of ours is compared with each of them.
OURS = {"ours": "the plain proxy", "exposed": "HAProxy"}
RIVALS = {
    "documented": ("Ray's documented example", "≥ 3×"),
    "litserve": ("LitServe, eager", "≥ 1.5×"),
    "litserve-onnx": ("LitServe with ONNX Runtime and our decoder", "≥ 1×"),
    "bare": ("bare uvicorn with our handler", "≥ 0.85×"),
}
BLOCKS, BLOCK = 8, 25  # of S10: how often each is asked so many requests
OVERLOAD = 20  # times the clients that keep every thread busy
OVERLOAD_S = 60.0


@dataclass(frozen=True)
class Round:
    """What every contender answered.

    Attributes:
        found: By contender and number of clients.
        floor: Images a second without HTTP.
    """

    found: dict[str, dict[int, Answers]]
    floor: float

    def per_s(self, kind: str, clients: int) -> float:
        """Requests a second of a contender."""
        return self.found[kind][clients].per_s


def s1(folder: Path) -> list[Measured]:
    """Our endpoint against what others serve, bare uvicorn, and the model without any HTTP.

    All are asked in every round, in turn forwards and backwards, so that a drift of the machine
    falls on all; a ratio is the median of those within a round.
    """
    threads = os.cpu_count() or 1
    rows: list[Measured] = []
    for backbone in BACKBONES:
        bundle = write_random_bundle(folder / backbone, backbone)
        image = photograph()
        rounds = []
        for number in range(ROUNDS):
            floor = in_process(bundle.path, image, threads=threads)
            kinds = (*OURS, *RIVALS)[:: 1 if number % 2 == 0 else -1]
            found = {
                kind: _asked(kind, bundle.path, backbone, image, threads=threads) for kind in kinds
            }
            rounds.append(Round(found, floor))
        rows += _rows(backbone, rounds)
    return rows


def s7(folder: Path) -> list[Measured]:
    """Twenty times too many clients for a minute."""
    bundle = write_random_bundle(folder / BACKBONES[0], BACKBONES[0])
    return [row for kind in OURS for row in _flooded(kind, bundle.path)]


def _flooded(kind: str, folder: Path) -> list[Measured]:
    threads, port, request = os.cpu_count() or 1, free_port(), request_of(kind, photograph())
    with endpoint(kind, folder, BACKBONES[0], port=port, threads=threads):
        load(port, request, clients=8, seconds=3)
        capacity = load(port, request, clients=4 * threads, seconds=SECONDS)
        before = resident_bytes("ServeReplica")
        clients = OVERLOAD * 4 * threads
        flooded = load(port, request, clients=clients, seconds=OVERLOAD_S)
        grown = resident_bytes("ServeReplica") - before
        time.sleep(5)
        after = load(port, request, clients=4 * threads, seconds=SECONDS)
    beside = {
        "clients": clients,
        "statuses": {str(status): n for status, n in sorted(flooded.statuses.items())},
        "capacity_per_s": capacity.per_s,
        "goodput_per_s": flooded.per_s,
        "slowest_ms": 1000 * max(flooded.latencies_s),
        "replica_grew_mb": grown / 2**20,
        "five_seconds_later_per_s": after.per_s,
    }
    behind = f"behind {OURS[kind]}"
    strange = sum(n for status, n in flooded.statuses.items() if status not in (200, 429, 503))
    return [
        Measured("S7", f"goodput under 20× overload {behind} / capacity",
                 flooded.per_s / capacity.per_s, "≥ 0.9×", beside),
        Measured("S7", f"answers other than 200, 429, 503 {behind}", float(strange), "≤ 0",
                 unit=""),
        Measured("S7", f"growth of the replica {behind} / 300 MB", grown / (300 << 20), "≤ 1×"),
    ]  # fmt: skip


def s10(folder: Path) -> list[Measured]:
    """What HAProxy and Ray add to a request of a lone client, whatever the model takes.

    Both endpoints run, and are asked in turn.
    """
    return [_added(backbone, folder) for backbone in BACKBONES]


def _added(backbone: str, folder: Path) -> Measured:
    threads, image = os.cpu_count() or 1, photograph()
    bundle = write_random_bundle(folder / backbone, backbone)
    ports = {kind: free_port() for kind in ("bare", "exposed")}
    outside: dict[str, list[float]] = {kind: [] for kind in ports}
    inside: dict[str, list[float]] = {kind: [] for kind in ports}
    with ExitStack() as running:
        for kind, port in ports.items():
            running.enter_context(endpoint(kind, bundle.path, backbone, port=port, threads=threads))
        for number in range(BLOCKS + 1):
            for kind, port in ports.items():
                for whole_ms, handler_ms in times_ms(port, request_of(kind, image), n=BLOCK):
                    if number:  # the first block warms both
                        outside[kind].append(whole_ms - handler_ms)
                        inside[kind].append(handler_ms)
    ms = {
        kind: (statistics.median(outside[kind]), statistics.median(inside[kind])) for kind in ports
    }
    return Measured(
        "S10",
        f"{backbone}: what HAProxy and Ray add to a lone client's request / that request to bare "
        "uvicorn",
        (ms["exposed"][0] - ms["bare"][0]) / sum(ms["bare"]),
        f"≤ {1 / 0.85 - 1:.2f}×",
        {f"{kind}_outside_and_in_the_handler_ms": both for kind, both in ms.items()},
    )


def photograph() -> bytes:
    """A JPEG of 500 × 375 pixels, of about 70 KB as photographs are."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8))
    file = io.BytesIO()
    coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def in_process(folder: Path, image: bytes, *, threads: int) -> float:
    """Images a second that the model answers from encoded bytes, without HTTP."""
    predictor = load_predictor(open_bundle(folder), threads=1)
    list(predictor.predict([image]))
    stop_s = time.perf_counter() + SECONDS

    def answer_on() -> int:
        n = 0
        while time.perf_counter() < stop_s:
            list(predictor.predict([image]))
            n += 1
        return n

    with ThreadPoolExecutor(threads) as pool:
        counts = [pool.submit(answer_on) for _ in range(threads)]
    return sum(count.result() for count in counts) / SECONDS


def _asked(
    kind: str, folder: Path, backbone: str, image: bytes, *, threads: int
) -> dict[int, Answers]:
    port = free_port()
    with endpoint(kind, folder, backbone, port=port, threads=threads):
        request = request_of(kind, image)
        warm = load(port, request, clients=2, seconds=3)
        if set(warm.statuses) != {200}:
            raise RuntimeError(f"{kind} answers {dict(warm.statuses)}: nothing to compare with")
        return {
            clients: load(port, request, clients=clients, seconds=ROUND_S) for clients in CLIENTS
        }


def _rows(backbone: str, rounds: list[Round]) -> list[Measured]:
    def p99_ms(kind: str, clients: int) -> float:
        latencies_s = [s for one in rounds for s in one.found[kind][clients].latencies_s]
        return Answers(latencies_s=latencies_s).percentile_ms(99)

    rows = []
    for clients in CLIENTS:
        beside: dict[str, Any] = {"in_process_per_s": [one.floor for one in rounds]}
        for kind in (*OURS, *RIVALS):
            beside[f"{kind}_per_s"] = [one.per_s(kind, clients) for one in rounds]
            beside[f"{kind}_p99_ms"] = p99_ms(kind, clients)
        for kind, name in OURS.items():
            for rival, (theirs, goal) in RIVALS.items():
                what = f"{backbone}, {clients} clients: requests a second, ours ({name}) / {theirs}"
                ratios = [one.per_s(kind, clients) / one.per_s(rival, clients) for one in rounds]
                rows.append(Measured("S1", what, statistics.median(ratios), goal, beside))
                beside = {}  # once is enough
            quickest = min(p99_ms(rival, clients) for rival in RIVALS if rival != "bare")
            what = f"{backbone}, {clients} clients: p99, ours ({name}) / the best rival's"
            rows.append(Measured("S1", what, p99_ms(kind, clients) / quickest, "≤ 1×"))
    for kind, name in OURS.items():
        best = [max(one.per_s(kind, clients) for clients in CLIENTS) / one.floor for one in rounds]
        what = f"{backbone}: best of ours ({name}) / in process"
        rows.append(Measured("S1", what, statistics.median(best), "≥ 0.65×"))
    return rows


def resident_bytes(title: str) -> int:
    """Of all processes with this title, their shared pages counted in each."""
    total = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if title.encode() in (folder / "cmdline").read_bytes():
                    total += int((folder / "statm").read_text().split()[1]) * 4096
            except OSError:
                continue
    return total
