"""P5: what a trial costs that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.runtime.cluster import joined_cluster
from orchestrator.spec.parsing import parse_sweep
from orchestrator.tuning.sweep import run_sweep
from tests.benchmarks.documented import Work, plain_cluster, run_documented
from tests.benchmarks.harness import Measured, seconds_of
from tests.conftest import write_tree

CPUS = 4


def p5(folder: Path) -> list[Measured]:
    """Seconds a trial of the documented pattern over ours, with one worker and with two.

    A cost is the difference between a longer and a shorter run, divided by the trials that the
    longer one has more, so that what happens once a run is in neither: of ours on two workers the
    first trial starts them, and the others find them warm. Our trial that does nothing
    trains a head for one epoch on a dozen stored features, writes a checkpoint and its record.
    """
    data = write_tree(folder / "data", 6, seed=0)
    rows = []
    for workers, counts, goal in ((1, (4, 20), "≥ 60×"), (2, (1, 3), "≥ 2×")):

        def ours(n: int, workers: int = workers) -> None:
            run_sweep(parse_sweep(_raw(data, folder / "runs", n, workers), base=folder))

        def documented(n: int, workers: int = workers) -> None:
            place = folder / f"documented-{workers}-{n}"
            works = {f"nothing-{i}": Work() for i in range(n)}
            run_documented(works, folder=place, workers=workers, at_once=1)

        with joined_cluster(cpus=CPUS):
            ours(2)  # what is computed once is there
            mine = _each(ours, counts)
        with plain_cluster(CPUS):
            documented(2)
            theirs = _each(documented, (1, 3))
        rows.append(
            Measured(
                id="P5",
                what=f"a trial that does nothing, {workers} worker{'s' * (workers > 1)}: the "
                "documented pattern against ours",
                value=theirs / mine,
                goal=goal,
                beside={"seconds_of_ours": mine, "seconds_as_documented": theirs},
            )
        )
    return rows


def _each(run: Callable[[int], None], counts: tuple[int, int]) -> float:
    """Seconds of one trial more."""
    fewer, more = counts
    short = seconds_of(lambda: run(fewer))
    return (seconds_of(lambda: run(more)) - short) / (more - fewer)


def _raw(data: Path, storage: Path, n: int, workers: int) -> dict[str, Any]:
    """A sweep of `n` trials that no bank trains, one after the other."""
    return {
        "name": f"nothing-{workers}-{n}",
        "task": "image-classification",
        "data": {"train": str(data)},
        "search": [
            {
                "strategy": "feature-extraction",
                "backbone": {"name": "mobilenetv3_small_050", "weights": "none"},
                "image_size": 32,
                "epochs": 1,
                "accumulate": 2,
                "head_lr": {"log": [1e-4, 1e-2]},
            }
        ],
        "budget": {"trials": n},
        "tuner": {"searcher": "random", "scheduler": "none"},
        "workers": {"per_trial": workers, "cpus": CPUS / workers},
        "storage": str(storage),
    }
