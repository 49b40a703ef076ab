from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orchestrator.data

FORBIDDEN = {"torch", "ray", "torchvision", "tensorflow", "datasets", "pandas"}


def test_the_whole_layer_imports_neither_torch_nor_ray():
    names = sorted(path.stem for path in Path(orchestrator.data.__path__[0]).glob("[!_]*.py"))
    lines = [f"import orchestrator.data.{name}" for name in names]
    lines += ["import sys", f"print(sorted({FORBIDDEN!r} & sys.modules.keys()))"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert len(names) > 10
    assert done.stdout.strip() == "[]"
