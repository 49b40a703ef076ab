"""Planning a sweep without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from orchestrator.runtime.cluster import joined_cluster, local_cluster
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tuning.adaptation_plan import PRETRAININGS, pretraining_rows, seconds_to_come
from orchestrator.tuning.handing_over import PLAN, planned
from orchestrator.tuning.plan import CostBook, make_plan
from orchestrator.tuning.preparing import prepare_sweep
from orchestrator.tuning.progress import Progress


def plan_sweep(
    spec: SweepSpec, *, address: str | None = None, probe: bool, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """The plan of a sweep, written to its folder.

    Args:
        spec: The sweep.
        address: A Ray cluster to plan for; this machine when None.
        probe: Whether to measure costs that are not known yet.
        progress: Told what is measured.

    Returns:
        The sweep's folder, and the content of its `plan.json`.
    """
    sweep = prepare_sweep(spec, progress=progress)
    if address is None:
        cluster = local_cluster()
    else:
        with joined_cluster(address) as cluster:
            pass
    sweep = sweep.tokenized(progress)
    torch.set_num_threads(spec.workers.threads)
    factory = sweep.factory()
    costs = CostBook.of(spec, sweep.storage)
    rows = pretraining_rows(sweep.adaptations(), costs, probe=probe, progress=progress)
    plan = make_plan(
        spec,
        factory,
        sweep.examples,
        shared=sweep.shared(factory),
        cluster=cluster,
        costs=costs,
        probe=probe,
        progress=progress,
        pretrainings_s=seconds_to_come(rows),
    )
    plan[PRETRAININGS] = rows
    with sweep.folder.locked():
        sweep.folder.write(PLAN, planned(sweep.folder, plan))
    return sweep.folder.root, plan
