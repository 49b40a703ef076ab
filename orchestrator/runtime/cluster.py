"""The Ray cluster that a command runs on: joined or started, and what fits on it."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from orchestrator.errors import CapacityError, OrchestratorError
from orchestrator.runtime.memory import free_memory_bytes
from orchestrator.spec.sweep import WorkersSpec

# One Ray Train trial starts six processes of its own beside its workers; polling faster and
# leaving the preemption watcher out saves seconds a trial (measured on two cores).
RAY_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# glibc gives every large tensor back to the kernel and faults it in again at the next step: half
# of the time of a fine-tuning step of EfficientNet-Lite0 was the kernel's (two cores, 300 px,
# batch 32), and two thirds of it remain when freed memory is kept for reuse.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_ARENA_MAX": "1",
}

RELEASED_WITHIN_S = 2.0  # an actor that has ended gives its CPUs back


@dataclass(frozen=True)
class Cluster:
    """What a joined cluster offers.

    `node_memory_bytes` is the main memory that trials may take of its smallest node, where known.
    """

    cpus: float
    gpus: float
    nodes: int
    node_memory_bytes: float | None = None

    def trials_at_once(self, workers: WorkersSpec) -> int:
        """How many trials run side by side.

        Raises:
            CapacityError: Not even one fits, with the arithmetic.
        """
        n = workers.fewest
        cpus, gpus = n * workers.cpus, n * workers.gpus
        by_cpu = math.floor(self.cpus / cpus + 1e-9)
        by_gpu = math.floor(self.gpus / gpus + 1e-9) if gpus else by_cpu
        if min(by_cpu, by_gpu) < 1:
            short = "CPUs" if by_cpu < 1 else "GPUs"
            raise CapacityError(
                f"workers: a trial needs {n} workers × {workers.cpus:g} CPUs = {cpus:g} CPUs and "
                f"{n} × {workers.gpus:g} GPUs = {gpus:g} GPUs, but the cluster has "
                f"{self.cpus:g} CPUs and {self.gpus:g} GPUs: too few {short}. Lower "
                "workers.per_trial, workers.cpus or workers.gpus, or join a larger cluster with "
                "--address"
            )
        return min(by_cpu, by_gpu)

    def cpus_of_one(self, workers: WorkersSpec) -> float:
        """CPUs of a task that nothing else of the sweep runs beside.

        On one machine it takes what nobody else holds (an endpoint may serve there), where nodes
        are several a worker's share. What the sweep's own actors held a moment ago is waited for.
        """
        if self.nodes > 1:
            return workers.cpus
        end_s = time.monotonic() + RELEASED_WITHIN_S
        while (free := ray.available_resources().get("CPU", 0.0)) < self.cpus:
            if time.monotonic() > end_s:
                break
            time.sleep(0.1)
        return max(workers.cpus, float(math.floor(free)))


def local_cluster() -> Cluster:
    """What a cluster started in this process would offer."""
    import torch

    return Cluster(
        cpus=float(os.cpu_count() or 1),
        gpus=float(torch.cuda.device_count()),
        nodes=1,
        node_memory_bytes=free_memory_bytes(),
    )


@contextmanager
def joined_cluster(address: str | None = None, *, cpus: int | None = None) -> Iterator[Cluster]:
    """A running cluster for the length of the block.

    A cluster that this process has joined already is used and left alone. Otherwise the one at
    `address` is joined, or a local one is started in this process and stopped at the end.

    Args:
        address: As `ray.init` takes it, e.g. `auto` or `ray://head:10001`; None starts one.
        cpus: Logical CPUs of a local cluster; the machine's own when not given.

    Raises:
        OrchestratorError: The address does not answer.
    """
    # A local cluster's processes inherit this environment; another cluster's are told.
    settings = {**RAY_SETTINGS, **KEEP_FREED_MEMORY}
    os.environ.update({k: v for k, v in settings.items() if k not in os.environ})
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(
                address=address,
                num_cpus=cpus if address is None else None,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                runtime_env=None if address is None else {"env_vars": KEEP_FREED_MEMORY},
            )
        except (ConnectionError, RuntimeError, ValueError) as err:
            raise OrchestratorError(
                f"no Ray cluster answers at {address or 'this machine'}: {err}"
            ) from err
        _keep_token_private()
    try:
        resources = ray.cluster_resources()
        alive = [node for node in ray.nodes() if node["Alive"]]
        shares = [node["Resources"].get("memory", 0.0) for node in alive]  # Ray's, for its tasks
        yield Cluster(
            cpus=float(resources.get("CPU", 0)),
            gpus=float(resources.get("GPU", 0)),
            nodes=len(alive),
            node_memory_bytes=free_memory_bytes() if address is None else min(shares) or None,
        )
    finally:
        if ours:
            ray.shutdown()


def _keep_token_private() -> None:
    """Ray writes its token with the default umask; only its owner should read it."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file():
        token.chmod(0o600)
