"""S3: from the start of a process, or the first request to none, to the first answer."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from tests.benchmarks.bundles import LABELS, write_random_bundle
from tests.benchmarks.endpoints import endpoint, free_port, request_of
from tests.benchmarks.harness import Measured, paired
from tests.benchmarks.http_load import ask
from tests.benchmarks.serving import photograph

BACKBONE = "mobilenetv3_small_100"
PAIRS = 5
ZERO_PAIRS = 3
SETTLE_S = 5.0  # after which an endpoint that has just started rests

_OURS = """
import json, sys
from pathlib import Path
from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.predictor import load_predictor

(answer,) = load_predictor(open_bundle(sys.argv[1])).predict([Path(sys.argv[2])])
print(json.dumps(answer["probabilities"]))
"""

# A replica's constructor and first call as tutorials write them.
_NAIVE = """
import json, sys
import timm, torch
from PIL import Image
from torchvision import transforms

model = timm.create_model(sys.argv[3], num_classes=5)
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
model.eval()
prepare = transforms.Compose([
    transforms.Resize(256),
    transforms.CenterCrop(224),
    transforms.ToTensor(),
    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
])
with torch.inference_mode():
    probs = model(prepare(Image.open(sys.argv[2]).convert("RGB"))[None]).softmax(1)[0]
print(json.dumps(probs.tolist()))
"""


def s3(folder: Path) -> list[Measured]:
    """A process by itself, and a replica that a request brings about."""
    return [_process(folder / "process"), _from_zero(folder / "zero")]


def _from_zero(folder: Path) -> Measured:
    """Seconds of the first request to a Serve deployment that has no replica."""
    bundle, image = write_random_bundle(folder / "bundle", BACKBONE), photograph()
    threads = os.cpu_count() or 1
    found: dict[str, list[float]] = {"ours": [], "documented": []}
    for number in range(ZERO_PAIRS):
        for kind in list(found)[:: 1 if number % 2 == 0 else -1]:
            port = free_port()
            started = endpoint(kind, bundle.path, BACKBONE, port=port, threads=threads, replicas=0)
            with started:
                time.sleep(SETTLE_S)
                began_s = time.perf_counter()
                status = ask(port, request_of(kind, image))
                found[kind].append(time.perf_counter() - began_s)
                assert status == 200, (kind, status)
    pairs = zip(found["ours"], found["documented"], strict=True)
    return Measured(
        id="S3",
        what="the first request to a deployment without a replica, until it is answered: ours "
        "against Ray's documented example",
        value=statistics.median(a / b for a, b in pairs),
        goal=f"≤ {1 / 1.7:.2f}×",
        beside={f"seconds_of_{kind}": seconds for kind, seconds in found.items()},
    )


def _process(folder: Path) -> Measured:
    """Seconds of a process that answers one JPEG through a bundle, as a share of one with torch."""
    bundle = write_random_bundle(folder / "bundle", BACKBONE)
    weights, photo = folder / "weights.pt", folder / "photo.jpg"
    torch.save(timm.create_model(BACKBONE, num_classes=len(LABELS)).state_dict(), weights)
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(values).resize((500, 375)).save(photo, quality=90)
    answers: dict[str, Any] = {}

    def run(name: str, script: str, *words: Path | str) -> None:
        command = [sys.executable, "-c", script, *map(str, words)]
        done = subprocess.run(command, capture_output=True, check=True)
        answers[name] = json.loads(done.stdout)

    ratio, ours, naive = paired(
        lambda: run("ours", _OURS, bundle.path, photo),
        lambda: run("naive", _NAIVE, weights, photo, BACKBONE),
        pairs=PAIRS,
    )
    assert {name: len(answer) for name, answer in answers.items()} == {"ours": 5, "naive": 5}
    return Measured(
        id="S3",
        what="from the start of a process to its first answer: a bundle without torch against a "
        "replica with torch",
        value=ratio,
        goal="≤ 0.4×",
        beside={"seconds_of_ours": ours, "seconds_of_the_replica_with_torch": naive},
    )
