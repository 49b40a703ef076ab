"""`python -m jobs.demo`: the product's first ten minutes, on real data with real weights."""

from __future__ import annotations

import argparse
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs import elpv
from serve.client import Client, OneLabel

FOLDER = Path("demo")
SPEC = Path(__file__).parent / "specs" / "elpv-demo.yaml"
NAME = "solar-cells"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data, then run each verb as a user would, up to an endpoint that answers."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the endpoint running")
    args = parser.parse_args(argv)
    started_s = time.monotonic()
    root = SPEC.parent.parent.parent
    folder = root / FOLDER
    print(f"$ python -m jobs.elpv {FOLDER}", flush=True)
    if code := elpv.main([str(folder)]):
        return code
    weights = folder / elpv.WEIGHTS
    _run("advise", str(folder / "train"), "--backbone", f"tf_efficientnet_lite0={weights}")
    _run("plan", str(SPEC))
    sweep = _run("sweep", str(SPEC), keep=("sweep: ",))["sweep: "]
    _run("report", sweep)
    _run("promote", sweep, "--name", NAME)
    cells = sorted((folder / "test" / "defective").iterdir())[:2]
    cells += sorted((folder / "test" / "functional").iterdir())[:2]
    registry = f"sqlite:///{root / 'runs' / 'mlflow.db'}"
    images = [str(cell) for cell in cells]
    _run("predict", f"{NAME}@champion", *images, "--registry", registry)
    served = _serve(cells, registry=registry, keep=args.keep)
    print(
        f"\nDone in {(time.monotonic() - started_s) / 60:.1f} minutes.\n"
        f"  the report: {sweep}/report.html (open it in a browser)\n"
        f"  the endpoint: {served}\n"
        "  next: the full search, up to an hour:  python -m jobs.elpv data/elpv && "
        "orchestrator sweep jobs/specs/elpv.yaml\n"
        "  your own images, one folder a class:   orchestrator init PATH && "
        "orchestrator sweep sweep.yaml"
    )
    return 0


def _serve(cells: Sequence[Path], *, registry: str, keep: bool) -> str:
    """Serve the champion, ask it by curl and by the client; what became of the endpoint."""
    port = str(_free_port(8000))
    words = ("--registry", registry, "--port", port, "--detach")
    url = _run("deploy", f"{NAME}@champion", *words, keep=("serving at ",))["serving at "]
    try:
        _ask_by_curl(url, cells[0])
        _ask_by_client(url, cells)
        print(f"\nA page to try it on: {url}/   what it answers to: {url}/docs")
    except BaseException:
        _run("undeploy", "--port", port)
        raise
    if keep:
        return f"{url}/ (stop it with: orchestrator undeploy --port {port})"
    _run("undeploy", "--port", port)
    return "stopped; make demo ARGS=--keep leaves it running"


def _ask_by_curl(url: str, cell: Path) -> None:
    if shutil.which("curl") is None:
        return
    command = ["curl", "-s", "-F", f"input=@{cell}", f"{url}/v1/models/{NAME}:predict"]
    print(f"\n$ {shlex.join(command)}", flush=True)
    subprocess.run(command, check=True)
    print()


def _ask_by_client(url: str, cells: Sequence[Path]) -> None:
    print(f'\n>>> Client("{url}").predict("{NAME}", cells)', flush=True)
    with Client(url) as client:
        prediction = client.predict(NAME, list(cells))
    for cell, answer in zip(cells, prediction.answers, strict=True):
        told = answer.label if isinstance(answer, OneLabel) else answer
        print(f"{cell.name}: {told}, by version {prediction.version}")


def _free_port(wanted: int) -> int:
    """`wanted`, or another where something listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(*words: str, keep: Sequence[str] = ()) -> dict[str, str]:
    """Print and run a command, showing its output; what follows each line start in `keep`."""
    print(f"\n$ orchestrator {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "jobs", *words]
    kept: dict[str, str] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            for start in keep:
                if line.startswith(start):
                    kept[start] = line.removeprefix(start).strip()
    if process.returncode:
        raise SystemExit(process.returncode)
    return kept


if __name__ == "__main__":
    raise SystemExit(main())
