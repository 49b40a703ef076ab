"""`python -m jobs.demo`: the product's first ten minutes, on real data with real weights."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

from jobs import elpv

FOLDER = Path("demo")
SPEC = Path(__file__).parent / "specs" / "elpv-demo.yaml"


def main() -> int:
    """Write the data, then run each verb as a user would."""
    started_s = time.monotonic()
    root = SPEC.parent.parent.parent
    folder = root / FOLDER
    print(f"$ python -m jobs.elpv {FOLDER}", flush=True)
    if code := elpv.main([str(folder)]):
        return code
    weights = folder / elpv.WEIGHTS
    _run("advise", str(folder / "train"), "--backbone", f"tf_efficientnet_lite0={weights}")
    _run("plan", str(SPEC))
    sweep = _run("sweep", str(SPEC), keep="sweep: ")
    _run("report", sweep)
    _run("promote", sweep, "--name", "solar-cells")
    cells = sorted((folder / "test" / "defective").iterdir())[:2]
    cells += sorted((folder / "test" / "functional").iterdir())[:2]
    registry = f"sqlite:///{root / 'runs' / 'mlflow.db'}"
    images = [str(cell) for cell in cells]
    _run("predict", "solar-cells@champion", *images, "--registry", registry)
    print(
        f"\nDone in {(time.monotonic() - started_s) / 60:.1f} minutes.\n"
        f"  the report: {sweep}/report.html (open it in a browser)\n"
        "  next: the full search, up to an hour:  python -m jobs.elpv data/elpv && "
        "orchestrator sweep jobs/specs/elpv.yaml\n"
        "  your own images, one folder a class:   orchestrator init PATH && "
        "orchestrator sweep sweep.yaml"
    )
    return 0


def _run(*words: str, keep: str = "") -> str:
    """Print a command, run it, show its output; the rest of the line that starts with `keep`."""
    print(f"\n$ orchestrator {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "jobs", *words]
    kept = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if keep and line.startswith(keep):
                kept = line.removeprefix(keep).strip()
    if process.returncode:
        raise SystemExit(process.returncode)
    return kept


if __name__ == "__main__":
    raise SystemExit(main())
