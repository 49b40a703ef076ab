"""S1 and S7: requests a second over HTTP, and what is left of them when far too many come."""

from __future__ import annotations

import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.predictor import load_predictor
from tests.benchmarks.bundles import write_random_bundle
from tests.benchmarks.endpoints import endpoint, free_port, request_of
from tests.benchmarks.harness import Measured
from tests.benchmarks.http_load import Answers, load

BACKBONES = ("mobilenetv3_small_100", "tf_efficientnet_lite0")
CLIENTS = (1, 8, 32)
SECONDS = 6.0
# The goal of ours / theirs. Each of ours is compared with each of them.
OURS = {"ours": "the plain proxy", "exposed": "HAProxy"}
RIVALS = {
    "documented": ("Ray's documented example", "≥ 3×"),
    "litserve": ("LitServe, eager", "≥ 1.5×"),
    "litserve-onnx": ("LitServe with ONNX Runtime and our decoder", "≥ 1×"),
    "bare": ("bare uvicorn with our handler", "≥ 0.85×"),
}
OVERLOAD = 20  # times the clients that keep every thread busy
OVERLOAD_S = 60.0


def s1(folder: Path) -> list[Measured]:
    """Our endpoint against what others serve, bare uvicorn, and the model without any HTTP."""
    threads = os.cpu_count() or 1
    rows: list[Measured] = []
    for backbone in BACKBONES:
        bundle = write_random_bundle(folder / backbone, backbone)
        image = photograph()
        floor = in_process(bundle.path, image, threads=threads)
        found = {
            kind: _asked(kind, bundle.path, backbone, image, threads=threads)
            for kind in (*OURS, *RIVALS)
        }
        rows += _rows(backbone, found, floor)
    return rows


def s7(folder: Path) -> list[Measured]:
    """Twenty times too many clients for a minute."""
    threads = os.cpu_count() or 1
    backbone = BACKBONES[0]
    bundle, image = write_random_bundle(folder / backbone, backbone), photograph()
    port = free_port()
    with endpoint("ours", bundle.path, backbone, port=port, threads=threads):
        request = request_of("ours", image)
        load(port, request, clients=8, seconds=3)
        capacity = load(port, request, clients=4 * threads, seconds=SECONDS)
        before = _resident_bytes("ServeReplica")
        clients = OVERLOAD * 4 * threads
        flooded = load(port, request, clients=clients, seconds=OVERLOAD_S)
        grown = _resident_bytes("ServeReplica") - before
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
    strange = sum(n for status, n in flooded.statuses.items() if status not in (200, 429, 503))
    return [
        Measured("S7", "goodput under 20× overload / capacity", flooded.per_s / capacity.per_s,
                 "≥ 0.9×", beside),
        Measured("S7", "answers other than 200, 429, 503", float(strange), "≤ 0", {}),
        Measured("S7", "growth of the replica / 300 MB", grown / (300 << 20), "≤ 1×", {}),
    ]  # fmt: skip


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
            clients: load(port, request, clients=clients, seconds=SECONDS) for clients in CLIENTS
        }


def _rows(backbone: str, found: dict[str, dict[int, Answers]], floor: float) -> list[Measured]:
    rows = []
    for clients in CLIENTS:
        rates = {kind: answers[clients].per_s for kind, answers in found.items()}
        beside: dict[str, Any] = {f"{kind}_per_s": rate for kind, rate in rates.items()}
        for kind, answers in found.items():
            beside[f"{kind}_p50_ms"] = answers[clients].percentile_ms(50)
            beside[f"{kind}_p99_ms"] = answers[clients].percentile_ms(99)
        beside["in_process_per_s"] = floor
        for kind, name in OURS.items():
            for rival, (theirs, goal) in RIVALS.items():
                what = f"{backbone}, {clients} clients: requests a second, ours ({name}) / {theirs}"
                rows.append(Measured("S1", what, rates[kind] / rates[rival], goal, beside))
                beside = {}  # once is enough
            quickest = min(found[r][clients].percentile_ms(99) for r in RIVALS if r != "bare")
            p99 = found[kind][clients].percentile_ms(99)
            what = f"{backbone}, {clients} clients: p99, ours ({name}) / the best rival's"
            rows.append(Measured("S1", what, p99 / quickest, "≤ 1×"))
    for kind, name in OURS.items():
        best = max(answers.per_s for answers in found[kind].values())
        what = f"{backbone}: best of ours ({name}) / in process"
        rows.append(Measured("S1", what, best / floor, "≥ 0.65×"))
    return rows


def _resident_bytes(title: str) -> int:
    """Of all processes with this title."""
    total = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if title.encode() in (folder / "cmdline").read_bytes():
                    total += int((folder / "statm").read_text().split()[1]) * 4096
            except OSError:
                continue
    return total
