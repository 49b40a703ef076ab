"""A pretraining on the cluster: one Ray task, or several workers under Ray Train."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import TorchTrainer

from orchestrator.data.examples import Examples
from orchestrator.errors import OrchestratorError
from orchestrator.models.placing import one_device
from orchestrator.runtime.pretrained import PretrainedFolder
from orchestrator.runtime.process_cache import open_examples
from orchestrator.runtime.scratch import train_scratch
from orchestrator.runtime.signals import Signals
from orchestrator.runtime.trial_run import VERSIONED, error_text, set_up_process
from orchestrator.runtime.worker_group import MAX_FAILURES, given_device, scaling
from orchestrator.spec import mirror
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.pretraining import Pretraining
from orchestrator.spec.sweep import WorkersSpec
from orchestrator.training.objectives import build_objective
from orchestrator.training.pretraining import PretrainingResult, run_pretraining
from orchestrator.training.workers import Workers

POLL_S = 2.0


@dataclass(frozen=True)
class PretrainingTicket:
    """Which pretraining, and what each of its workers may use.

    Attributes:
        storage: Whose `pretrained` folder it is written to; a path, or a URI.
        digest: Of the pretraining.
        backbone: What is adapted.
        weights_digest: Of its weights before.
        pretraining: The settings.
        corpus: The folder of the documents, seen by every node; a path, or a URI.
        corpus_digest: Of the documents.
        threads: Of a worker.
        use_gpu: Whether a worker has one.
        seconds: Of wall time, after which it stops with a checkpoint; None for no limit.
    """

    storage: str
    digest: str
    backbone: BackboneSpec
    weights_digest: str
    pretraining: Pretraining
    corpus: str
    corpus_digest: str
    threads: int
    use_gpu: bool
    seconds: float | None

    @property
    def folder(self) -> PretrainedFolder:
        """Where it is written."""
        return PretrainedFolder(mirror.local_path(self.storage), self.digest)


def conduct_pretraining(
    ticket: PretrainingTicket,
    told: Callable[[str], None],
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> bool:
    """Run a pretraining on this worker, on the device that it was given; rank 0 writes its folder.

    Returns:
        Whether it has ended, rather than been stopped by its limit of time.
    """
    started_s = time.monotonic()
    set_up_process(device, ticket.threads)
    workers = Workers(rank=rank, world_size=world_size, device=device)
    corpus = open_examples(mirror.local_path(ticket.corpus))
    objective = build_objective(
        ticket.pretraining, ticket.backbone, corpus, workers=workers, threads=ticket.threads
    )
    limit_s = ticket.seconds

    result = run_pretraining(
        objective,
        ticket.pretraining,
        digest=ticket.digest,
        workers=workers,
        checkpoints=ticket.folder.checkpoints,
        told=told,
        stopped=lambda: limit_s is not None and time.monotonic() - started_s > limit_s,
    )
    if result is not None and rank == 0:
        ticket.folder.publish(objective.save, provenance_of(ticket, corpus, result))
    return result is not None


def provenance_of(
    ticket: PretrainingTicket, corpus: Examples, result: PretrainingResult
) -> dict[str, Any]:
    """The content of `pretraining.json`, but for the digests of the files."""
    spec = ticket.pretraining
    return {
        "backbone": ticket.backbone.to_json(),
        "parent_weights": ticket.weights_digest,
        "corpus": {
            "digest": ticket.corpus_digest,
            "places": None if spec.corpus is None else list(spec.corpus.files),
            "documents": len(corpus.indices("train")),
            "held_out": len(corpus.indices("validation")),
        },
        "settings": spec.settings,
        **result.to_json(),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in (*VERSIONED, "transformers", "accelerate")},
    }


def run_on_cluster(
    ticket: PretrainingTicket,
    workers: WorkersSpec,
    *,
    cpus: float,
    said: Callable[[str], None],
) -> bool:
    """Run a pretraining and wait for it; what it tells is passed on.

    Args:
        ticket: Which.
        workers: What a trial occupies, and so a pretraining.
        cpus: Of the task, where one worker is all.
        said: Told where it is.

    Returns:
        Whether it has ended, rather than been stopped by its limit of time.

    Raises:
        OrchestratorError: What the pretraining raised.
    """
    signals = Signals.start()
    try:
        if workers.most == 1:
            task = _on_one_worker.options(num_cpus=cpus, num_gpus=workers.gpus)
        else:
            task = _on_workers.options(num_cpus=0)
        return _awaited(task.remote(ticket, workers, signals), signals, said)
    finally:
        signals.close()


def _awaited(ref: Any, signals: Signals, said: Callable[[str], None]) -> bool:
    shown = ""
    try:
        while True:
            ready, _ = ray.wait([ref], timeout=POLL_S)
            for text in signals.news()[1].values():
                if text != shown:
                    said(text)
                    shown = text
            if ready:
                ended: bool = ray.get(ref)
                return ended
    except ray.exceptions.RayTaskError as err:
        if isinstance(err.cause, OrchestratorError):
            raise err.cause from err
        raise OrchestratorError(f"the pretraining failed: {error_text(err.cause)}") from err
    except ray.exceptions.RayError as err:
        told = f"the pretraining's worker died ({error_text(err)})"
        raise OrchestratorError(f"{told}. The same command goes on where it stood") from err
    finally:
        ray.cancel(ref, force=True)


@ray.remote(max_retries=2)
def _on_one_worker(ticket: PretrainingTicket, workers: WorkersSpec, signals: Signals) -> bool:
    del workers
    return conduct_pretraining(
        ticket,
        lambda text: signals.note(ticket.digest, text),
        device=one_device(use_gpu=ticket.use_gpu),
    )


@ray.remote(max_retries=0)
def _on_workers(ticket: PretrainingTicket, workers: WorkersSpec, signals: Signals) -> bool:
    """Ray Train restarts the workers when one dies; the checkpoints are ours."""
    scratch = ticket.folder.checkpoints.with_name(f"ray-{uuid.uuid4().hex[:12]}")
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"ticket": ticket, "signals": signals},
        scaling_config=scaling(workers),
        run_config=train.RunConfig(
            name="train",
            **train_scratch(mirror.location_of(scratch)),
            failure_config=train.FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    trainer.fit()
    return ticket.folder.provenance() is not None


def _train_worker(config: dict[str, Any]) -> None:
    context = train.get_context()
    ticket: PretrainingTicket = config["ticket"]
    signals: Signals = config["signals"]
    conduct_pretraining(
        ticket,
        lambda text: signals.note(ticket.digest, text),
        device=given_device(use_gpu=ticket.use_gpu),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
    )
