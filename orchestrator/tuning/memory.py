"""Whether the trials that run side by side fit the memory of a node.

What a trial needs is forecast from a few measured steps: the process with its weights, the
gradients and moments of what it trains, and the activations of its part of a batch. Fewer trials
run at once where they would not fit together; one that does not fit alone is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import CapacityError, Fault
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import size_text

BYTES_PER_NUMBER = 4
MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2}


@dataclass(frozen=True)
class TrialMemory:
    """What one worker of a trial needs at its peak, in bytes.

    Attributes:
        trial: What it is, in words.
        process: Libraries, weights, and what is mapped of the data.
        training: Gradients, moments and averages of the trained parameters.
        batch: Examples that it computes at once.
        activations: Of that batch.
    """

    trial: str
    process: int
    training: int
    batch: int
    activations: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.process + self.training + self.activations

    def __str__(self) -> str:
        return (
            f"{self.trial} needs {_gb(self.bytes)}: {_gb(self.process)} of process and weights, "
            f"{_gb(self.training)} of gradients and moments, {_gb(self.activations)} of "
            f"activations for {self.batch} examples at once"
        )


def trial_memory(
    experiment: Experiment, *, process: int, trained: int, an_example: float, n_workers: int
) -> TrialMemory:
    """The forecast for one worker of a trial.

    Args:
        experiment: What it runs.
        process: Bytes of the process once the network is built.
        trained: How many parameters it trains.
        an_example: Bytes of one example's activations.
        n_workers: The fewest that share a batch.
    """
    params = experiment.strategy
    batch = -(-params.batch_size // (n_workers * params.accumulate))
    copies = 1 + MOMENTS[params.optimizer] + (1 if params.ema_decay else 0)
    return TrialMemory(
        trial=f"a {params.strategy} trial of {experiment.backbone.name} "
        f"at {size_text(experiment.input)}",
        process=process,
        training=copies * BYTES_PER_NUMBER * trained,
        batch=batch,
        activations=round(batch * an_example),
    )


def trials_that_fit(
    needs: Sequence[TrialMemory],
    *,
    at_once: int,
    room_bytes: float,
    n_nodes: int = 1,
    n_workers: int = 1,
) -> int:
    """How many trials run side by side, at most `at_once`, the neediest among them.

    Args:
        needs: Of the trials to come; those that are not known are left out.
        at_once: As many as the CPUs and GPUs allow.
        room_bytes: Of a node.
        n_nodes: Of the cluster.
        n_workers: Of one trial.

    Raises:
        CapacityError: Not even one fits, with the arithmetic.
    """
    if not needs:
        return at_once
    neediest = max(needs, key=lambda need: need.bytes)
    found = n_nodes * int(room_bytes // neediest.bytes) // n_workers
    if found < 1:
        of_workers = f" on each of {n_workers} workers" if n_workers > 1 else ""
        told = f"{neediest}{of_workers}. {n_nodes} node{'s' if n_nodes > 1 else ''} "
        told += f"with {_gb(room_bytes)} for trials cannot hold it"
        hint = "Lower batch_size, raise accumulate, use a smaller backbone, or give it more memory"
        raise CapacityError([Fault("budget.memory_gb", f"{told}. {hint}")])
    return min(at_once, found)


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
