"""`python -m jobs.submitted VERB …`: a verb inside a Ray job, whose log also carries its result.

All that comes back from a job is its log, to which both of its streams go. The result is a line of
its own, behind a record separator (RFC 7464), which no other line begins with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.cli import build_parser, run_verb

MARK = "\x1eorchestrator-result "


@dataclass(frozen=True)
class JobResult:
    """How a verb ended.

    Attributes:
        code: Its exit code.
        document: What `--json` would have printed; None where the job ended before.
    """

    code: int
    document: Any


def main(argv: Sequence[str]) -> int:
    """Run a verb and print its result behind what it prints itself."""
    code, document = run_verb(build_parser(argv[:1]).parse_args(argv))
    line = json.dumps(asdict(JobResult(code, document)), allow_nan=False)
    sys.stderr.flush()
    print(f"{MARK}{line}", flush=True)
    return code


def result_in(log: str) -> JobResult | None:
    """The result that a job's log carries; None where the job did not come so far."""
    lines = [line for line in log.split("\n") if line.startswith(MARK)]
    return JobResult(**json.loads(lines[-1].removeprefix(MARK))) if lines else None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
