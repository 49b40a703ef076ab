"""Endpoints that answer the same model in different ways, each a process of its own.

`python -m tests.benchmarks.endpoints KIND FOLDER BACKBONE PORT REPLICAS` runs one of those that are
not the product's own command.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "bench"
PREDICT = f"/v1/models/{NAME}:predict"
KEY = "a-key-of-the-benchmarks-alone"
PATIENCE_S = 240.0


def request_of(kind: str, image: bytes) -> bytes:
    """A whole HTTP request with an encoded image, as an endpoint of this kind wants it."""
    if kind.startswith("litserve"):
        body = json.dumps({"image": base64.b64encode(image).decode()}).encode()
        return request("/predict", body, {"Content-Type": "application/json"})
    headers = {"Content-Type": "image/jpeg"}
    if kind == "exposed":
        headers["Authorization"] = f"Bearer {KEY}"
    return request("/predict" if kind == "documented" else PREDICT, image, headers)


def request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A whole HTTP request."""
    lines = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def endpoint(
    kind: str, folder: Path, backbone: str, *, port: int, threads: int, replicas: int = 1
) -> Iterator[int]:
    """The process id of an endpoint that answers, for the length of the block.

    Args:
        kind: `ours` (behind Ray's proxy, on loopback), `exposed` (the same behind HAProxy, with a
            key), `bare` (uvicorn before our handler, no Ray), or one of the rivals: `documented`
            (Ray Serve), `litserve`, `litserve-onnx`.
        folder: Of the bundle.
        backbone: Its library name.
        port: To listen at.
        threads: That compute, in each replica.
        replicas: Of those behind Serve; of 0 the first request starts one.
    """
    if kind in ("ours", "exposed"):
        words = deploying(kind, {NAME: folder}, port=port, threads=threads, replicas=replicas)
    else:
        words = [sys.executable, "-m", "tests.benchmarks.endpoints"]
        words += [kind, str(folder), backbone, str(port), str(replicas)]
    with running(words, port=port, threads=threads, wakes=replicas > 0) as pid:
        yield pid


@contextmanager
def running(words: list[str], *, port: int, threads: int, wakes: bool = True) -> Iterator[int]:
    """The process id of a command that serves, for the length of the block.

    Args:
        words: Of the command.
        port: Where it will answer.
        threads: For the libraries that ask the environment.
        wakes: Whether the model may be asked for its health, which starts a replica.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            words,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        try:
            _wait_until_answered(process, port, "/healthz" if wakes else "/-/healthz")
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


def deploying(
    kind: str, bundles: dict[str, Path], *, port: int, threads: int, replicas: int = 1
) -> list[str]:
    """The command that deploys bundles by name, or updates what it deployed at this port."""
    words = [sys.executable, "-m", "jobs", "deploy", "--port", str(port)]
    words += [word for name, path in bundles.items() for word in ("--bundle", f"{name}={path}")]
    words += ["--at-once", str(threads), "--min", str(replicas)]
    if replicas == 0:
        words += ["--own", "--max", "1"]
    if kind == "exposed":
        keys = next(iter(bundles.values())).parent / "keys"
        keys.touch(mode=0o600)
        keys.write_text(f"bench {KEY}\n")
        words += ["--expose", "--keys", str(keys)]
    return words


def _wait_until_answered(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError("the endpoint does not answer")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
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


def main() -> None:
    """Answer as the command line says, until interrupted."""
    kind, folder, backbone, port, replicas = sys.argv[1:]
    if kind == "bare":
        bare(Path(folder), int(port))
        return
    from tests.benchmarks import rivals

    workers = int(os.environ["OMP_NUM_THREADS"])
    match kind:
        case "documented":
            rivals.ray_serve(backbone, int(port), replicas=int(replicas))
        case "litserve":
            batches = {"max_batch_size": 8, "batch_timeout": 0.01}
            rivals.lit_serve(rivals.LitEager(backbone, **batches), int(port), workers=workers)
        case "litserve-onnx":
            rivals.lit_serve(rivals.LitOnnx(Path(folder)), int(port), workers=workers)
        case _:
            raise SystemExit(f"no such kind: {kind}")


if __name__ == "__main__":
    main()
