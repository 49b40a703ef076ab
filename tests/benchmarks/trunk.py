"""S2: many fine-tunes of one trunk, served together."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.predictor import Predictor, load_predictor
from orchestrator.bundle.shared_trunk import SharedTrunk
from tests.benchmarks.bundles import copies, write_random_bundle
from tests.benchmarks.endpoints import deploying, free_port, request, running
from tests.benchmarks.harness import Measured, paired
from tests.benchmarks.http_load import load
from tests.benchmarks.serving import photograph

BACKBONE = "mobilenetv3_small_100"
COUNTS = (1, 16, 128)
BATCH, N_BATCHES, THREADS = 8, 16, 2
CLIENTS, SECONDS, ROUNDS = 16, 6.0, 3  # of requests over HTTP
AT_ONCE = 3  # models of a replica in Ray's documentation of `serve.multiplexed`

_RESIDENT = """
import json, sys
from pathlib import Path
import numpy as np
from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.predictor import load_predictor

shared, *folders = sys.argv[1:]
bundles = [open_bundle(folder) for folder in folders]
if shared == "shared":
    from orchestrator.bundle.shared_trunk import SharedTrunk
    trunk = SharedTrunk(bundles[0], threads=1)
    predictors = [trunk.predictor(bundle) for bundle in bundles]
else:
    predictors = [load_predictor(bundle, threads=1) for bundle in bundles]
size = bundles[0].input.size
for predictor in predictors:
    predictor.outputs([np.zeros((8, 3, size, size), np.uint8)])
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
"""


def s2(folder: Path) -> list[Measured]:
    """Throughput and memory of 1, 16 and 128 heads of one trunk under uniform traffic.

    The bundles are copies of one that differ in temperature: their digests differ, so that nothing
    but the trunk is shared. A batch has eight requests, each for a bundle drawn at random.
    """
    original = write_random_bundle(folder / "original", BACKBONE)
    bundles = copies(original, folder / "copies", COUNTS[-1])
    size = original.input.size
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 1, 3, size, size), np.uint8)
    trunk = SharedTrunk(bundles[0], threads=THREADS)
    ours = {n: _shared(trunk, bundles[:n], images) for n in COUNTS}
    most = COUNTS[-1]
    rows = [
        _compared(
            f"{n} heads of one trunk against one: requests a second",
            ours[1],
            ours[n],
            "≥ 0.8×",
        )
        for n in COUNTS[1:]
    ]
    rows.append(
        _compared(
            f"{most} heads of one trunk against {AT_ONCE} whole models at once, the least recently "
            "used making room: requests a second",
            _multiplexed(bundles, images),
            ours[most],
            "≥ 10×",
        )
    )
    rows.append(
        _compared(
            "16 heads of one trunk against a session for each bundle: requests a second",
            _one_by_one([load_predictor(b, threads=THREADS) for b in bundles[:16]], images),
            ours[16],
            "≥ 1.0×",
        )
    )
    return [*rows, *_memory(bundles), *_over_http(bundles)]


def _over_http(bundles: Sequence[Bundle]) -> list[Measured]:
    """The same behind HTTP: all names in one replica, of which some or all are asked.

    A second replica lets requests that are there at once pass the trunk together.
    """
    image, cores = photograph(), os.cpu_count() or 1
    named = {f"fine-tune-{n:03d}": bundle.path for n, bundle in enumerate(bundles)}
    headers = {"Content-Type": "image/jpeg"}
    requests = [request(f"/v1/models/{name}:predict", image, headers) for name in named]
    ports = {"each": free_port(), "together": free_port()}
    found: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as opened:
        for how, port in ports.items():
            words = deploying("ours", named, port=port, threads=cores)
            words += ["--batch", str(BATCH), "--threads", str(cores)] if how == "together" else []
            opened.enter_context(running(words, port=port, threads=cores))
        asked = [(how, n) for how in ports for n in COUNTS]
        for number in range(ROUNDS + 1):
            for how, n in asked[:: 1 if number % 2 == 0 else -1]:
                answers = load(ports[how], *requests[:n], clients=CLIENTS, seconds=SECONDS)
                assert set(answers.statuses) == {200}, answers.statuses
                if number:  # the first round warms both
                    found.setdefault((how, n), []).append(answers.per_s)

    def ratio(one: tuple[str, int], other: tuple[str, int]) -> float:
        return statistics.median(a / b for a, b in zip(found[one], found[other], strict=True))

    beside = {f"{how}, {n} names, per_s": per_s for (how, n), per_s in found.items()}
    most = COUNTS[-1]
    return [
        *(
            Measured(
                "S2",
                f"over HTTP, {CLIENTS} clients: {n} names of one trunk / one of them, requests/s",
                ratio(("each", n), ("each", 1)),
                "≥ 0.8×",
                beside,
            )
            for n in COUNTS[1:]
        ),
        Measured(
            "S2",
            f"the same, {most} names on {cores} cores: requests pass the trunk together / each "
            "alone, requests/s (why CPUs batch none unasked)",
            ratio(("together", most), ("each", most)),
            "≤ 1×",
            beside,
        ),
    ]


def _compared(
    what: str, theirs: Callable[[], None], mine: Callable[[], None], goal: str
) -> Measured:
    ratio, seconds_of_theirs, seconds_of_ours = paired(theirs, mine, pairs=3)
    return Measured(
        id="S2",
        what=what,
        value=ratio,
        goal=goal,
        beside={
            "requests": BATCH * N_BATCHES,
            "seconds_of_ours": seconds_of_ours,
            "seconds_of_the_other": seconds_of_theirs,
        },
    )


def _traffic(n: int) -> list[list[int]]:
    """Which of `n` bundles each request of each batch is for."""
    drawn = np.random.default_rng(0).integers(0, n, (N_BATCHES, BATCH))
    return [[int(one) for one in batch] for batch in drawn]


def _shared(
    trunk: SharedTrunk, bundles: Sequence[Bundle], images: np.ndarray
) -> Callable[[], None]:
    predictors = [trunk.predictor(bundle) for bundle in bundles]

    def answer() -> None:
        for batch in _traffic(len(bundles)):
            requests = [(predictors[n], [image]) for n, image in zip(batch, images, strict=True)]
            trunk.outputs(requests)

    return answer


def _one_by_one(predictors: Sequence[Predictor], images: np.ndarray) -> Callable[[], None]:
    """The requests of a batch that are for one bundle go through its model together."""

    def answer() -> None:
        for batch in _traffic(len(predictors)):
            for n in set(batch):
                predictors[n].outputs([images[np.array(batch) == n][:, 0]])

    return answer


def _multiplexed(bundles: Sequence[Bundle], images: np.ndarray) -> Callable[[], None]:
    """Models are loaded when they are asked for; `AT_ONCE` stay."""
    loaded: OrderedDict[int, Predictor] = OrderedDict()

    def model(n: int) -> Predictor:
        if n not in loaded:
            if len(loaded) == AT_ONCE:
                loaded.popitem(last=False)
            loaded[n] = load_predictor(bundles[n], threads=THREADS)
        loaded.move_to_end(n)
        return loaded[n]

    def answer() -> None:
        for batch in _traffic(len(bundles)):
            for n in set(batch):
                model(n).outputs([images[np.array(batch) == n][:, 0]])

    return answer


def _memory(bundles: Sequence[Bundle]) -> list[Measured]:
    one = _resident("shared", bundles[:1])
    return [
        Measured(
            id="S2",
            what=f"resident memory of a process with {len(bundles)} heads of one trunk against one",
            value=_resident("shared", bundles) / one,
            goal="≤ 1.2×",
            beside={"bytes_of_one": one, "bytes_of_16_models": _resident("alone", bundles[:16])},
        )
    ]


def _resident(how: str, bundles: Sequence[Bundle]) -> int:
    """Resident bytes of a new process that has loaded bundles and answered with each."""
    words = [sys.executable, "-c", _RESIDENT, how, *(str(bundle.path) for bundle in bundles)]
    return int(json.loads(subprocess.run(words, capture_output=True, check=True).stdout))
