"""Endpoints that answer the same model in different ways, each a process of its own.

`python -m tests.benchmarks.endpoints bare|documented FOLDER BACKBONE PORT` runs one of the two that
are not the product's own command.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "bench"
PATHS = {"documented": "/predict"}
PATIENCE_S = 240.0


def path_of(kind: str) -> str:
    """What is asked."""
    return PATHS.get(kind, f"/v1/models/{NAME}:predict")


@contextmanager
def endpoint(kind: str, folder: Path, backbone: str, *, port: int, threads: int) -> Iterator[int]:
    """The process id of an endpoint that answers, for the length of the block.

    Args:
        kind: `ours` (behind Ray's proxy, on loopback), `bare` (uvicorn before our handler, no Ray),
            `documented` (Ray Serve as its documentation has it: FastAPI, torch).
        folder: Of the bundle.
        backbone: Its library name.
        port: To listen at.
        threads: That compute.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            _words(kind, folder, backbone, port=port, threads=threads),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        try:
            _wait_until_answered(process, port)
            yield process.pid
        except Exception:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _words(kind: str, folder: Path, backbone: str, *, port: int, threads: int) -> list[str]:
    python = [sys.executable, "-m"]
    if kind == "ours":
        served = ["--bundle", f"{NAME}={folder}", "--port", str(port), "--at-once", str(threads)]
        return [*python, "jobs", "deploy", *served]
    return [*python, "tests.benchmarks.endpoints", kind, str(folder), backbone, str(port)]


def _wait_until_answered(process: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError("the endpoint does not answer")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)


def bare(folder: Path, port: int) -> None:
    """Uvicorn and our handler, in one process."""
    import uvicorn

    from orchestrator.bundle.bundle import open_bundle
    from orchestrator.bundle.predictor import load_predictor
    from serve.endpoint import LocalEndpoint
    from serve.entry import Entry, Identity
    from serve.handler import Handler
    from serve.keys import Keys
    from serve.limits import Limits
    from serve.worker import Worker

    bundle, limits = open_bundle(folder), Limits()
    identity = Identity(NAME, "1", None, bundle.digest)
    worker = Worker(threads=int(os.environ["OMP_NUM_THREADS"]), queue=limits.queue)
    one = LocalEndpoint(Entry(identity, bundle, limits), load_predictor(bundle, threads=1), worker)
    handler: Any = Handler({NAME: one}, limits=limits, keys=Keys({}))
    uvicorn.run(handler, port=port, log_level="warning", access_log=False)


def documented(backbone: str, port: int) -> None:
    """What a competent user writes from Ray Serve's documentation: FastAPI, eager torch, PIL."""
    import io

    import ray
    import timm
    import torch
    from fastapi import FastAPI, Request
    from PIL import Image
    from ray import serve
    from torchvision import transforms

    app = FastAPI()

    @serve.deployment(ray_actor_options={"num_cpus": 1})
    @serve.ingress(app)
    class Classifier:
        def __init__(self, name: str) -> None:
            self.model = timm.create_model(name, pretrained=False, num_classes=5).eval()
            self.prepare = transforms.Compose(
                [
                    transforms.Resize(256),
                    transforms.CenterCrop(224),
                    transforms.ToTensor(),
                    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
                ]
            )

        @app.get("/healthz")
        def health(self) -> dict[str, bool]:
            return {"alive": True}

        @app.post("/predict")
        async def predict(self, request: Request) -> dict[str, Any]:
            image = Image.open(io.BytesIO(await request.body())).convert("RGB")
            with torch.inference_mode():
                probs = self.model(self.prepare(image)[None]).softmax(1)[0]
            label = int(probs.argmax())
            return {"label": label, "probabilities": probs.tolist()}

    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Classifier.bind(backbone))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    kind, folder, backbone, port = sys.argv[1:]
    if kind == "bare":
        bare(Path(folder), int(port))
    else:
        documented(backbone, int(port))
