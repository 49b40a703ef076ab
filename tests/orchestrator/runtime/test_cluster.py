"""What of a cluster a task takes that runs alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import ray

from orchestrator.runtime.cluster import Cluster
from orchestrator.spec.sweep import WorkersSpec

pytestmark = pytest.mark.ray


@ray.remote
class Holder:
    """An endpoint, or anything else that stays."""

    def ready(self) -> bool:
        return True


@contextmanager
def held(cpus: float) -> Iterator[None]:
    holder = Holder.options(num_cpus=cpus).remote()
    ray.get(holder.ready.remote())
    try:
        yield
    finally:
        ray.kill(holder)


def settled(cluster: Cluster) -> None:
    """Until what earlier tests held has been given back."""
    end_s = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < cluster.cpus:
        assert time.monotonic() < end_s
        time.sleep(0.1)


def test_a_task_alone_takes_what_nobody_else_holds(cluster: Cluster) -> None:
    settled(cluster)
    one = WorkersSpec(cpus=1)
    assert cluster.cpus_of_one(one) == cluster.cpus
    with held(0.5):
        assert cluster.cpus_of_one(one) == cluster.cpus - 1
    # What was held a moment ago is waited for.
    assert cluster.cpus_of_one(one) == cluster.cpus


def test_it_asks_for_no_less_than_a_worker_and_on_several_nodes_for_no_more(
    cluster: Cluster,
) -> None:
    settled(cluster)
    with held(cluster.cpus - 1):
        assert cluster.cpus_of_one(WorkersSpec(cpus=2)) == 2
    assert replace(cluster, nodes=2).cpus_of_one(WorkersSpec(cpus=2)) == 2
