"""`python -m tests.benchmarks [P1 P2 …]`: what sharing buys, each figure from one run.

Writes benchmarks/ID.json, and prints a table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.cold_start import s3
from tests.benchmarks.fill import p7
from tests.benchmarks.fuzz import s8
from tests.benchmarks.harness import Measured, table, write_rows
from tests.benchmarks.heads import p2
from tests.benchmarks.hostile import s9
from tests.benchmarks.loop import p6
from tests.benchmarks.overhead import p5
from tests.benchmarks.rolling import s5, s6
from tests.benchmarks.serving import s1, s7, s10
from tests.benchmarks.sweeps import p1, p3, p4
from tests.benchmarks.texts import t1_and_t2, t3
from tests.benchmarks.trunk import s2
from tests.benchmarks.zero_shot import s4

ALL: dict[str, Callable[[Path], list[Measured] | Measured]] = {
    "P1": p1,
    "P2": p2,
    "P3": p3,
    "P4": p4,
    "P5": p5,
    "P6": p6,
    "P7": p7,
    "S1": s1,
    "S2": s2,
    "S3": s3,
    "S4": s4,
    "S5": s5,
    "S6": s6,
    "S7": s7,
    "S8": s8,
    "S9": s9,
    "S10": s10,
    "T1": t1_and_t2,  # T2 is measured with it
    "T3": t3,
}


def main() -> None:
    """Run the chosen benchmarks, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("ids", nargs="*", choices=[*ALL, []], help="which (default: all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    args = parser.parse_args()
    rows: list[Measured] = []
    for name in args.ids or ALL:
        with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
            found = ALL[name](Path(folder))
        new = found if isinstance(found, list) else [found]
        write_rows(new, args.out / f"{name}.json")
        rows += new
        print(f"{name}: {', '.join(f'{row.told}' for row in new)}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
