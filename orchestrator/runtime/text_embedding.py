"""Label embeddings of a sweep: each set of prompts goes through a text tower once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from orchestrator.features.store import FeatureStore
from orchestrator.models.label_embeddings import LabelEmbeddings
from orchestrator.models.placing import one_device
from orchestrator.spec import mirror
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.prompts import class_prompts


@dataclass(frozen=True)
class TextNeed:
    """The prompts of a task's labels, and the CLIP that reads them.

    Attributes:
        backbone: The CLIP.
        weights_digest: Of all of it.
        prompts: (label, its prompts), in the labels' order.
    """

    backbone: BackboneSpec
    weights_digest: str
    prompts: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, experiment: Experiment) -> TextNeed:
        """What an experiment with a head of texts needs.

        Raises:
            SpecError: A description is of no label.
        """
        strategy = experiment.strategy
        found = class_prompts(experiment.task.labels, strategy.templates, strategy.descriptions)
        return cls(experiment.backbone, experiment.weights_digest, tuple(found.items()))

    def ensured(self, folder: Path, *, device: str) -> LabelEmbeddings:
        """The embeddings, from `folder` where they are there; see `ensure_embeddings`."""
        from orchestrator.models.clip import ensure_embeddings

        return ensure_embeddings(
            folder, self.backbone, self.weights_digest, dict(self.prompts), device=device
        )


def texts_folder(store: FeatureStore) -> Path:
    """Where the label embeddings of all sweeps of a storage lie: beside their features."""
    return store.root.parent / "texts"


def embed_texts(
    needs: Iterable[TextNeed],
    *,
    store: FeatureStore,
    cpus: float,
    gpus: float,
    progress: Callable[[str, int, int], None],
) -> None:
    """Make what is not there yet, one Ray task a need.

    Raises:
        SpecError: A prompt is too long for its CLIP.
        IntegrityError: Weights have changed since they were planned with.
    """
    task = _embed.options(num_cpus=cpus, num_gpus=gpus)
    folder = mirror.location_of(texts_folder(store))
    threads, use_gpu = max(1, int(cpus)), gpus > 0
    waiting = [task.remote(need, folder, threads, use_gpu) for need in dict.fromkeys(needs)]
    total = len(waiting)
    try:
        while waiting:
            (ready,), waiting = ray.wait(waiting, num_returns=1)
            ray.get(ready)
            progress("label sets embedded", total - len(waiting), total)
    except ray.exceptions.RayTaskError as err:
        raise err.cause from err
    finally:
        for ref in waiting:
            ray.cancel(ref)


@ray.remote(max_retries=3)
def _embed(need: TextNeed, folder: str, threads: int, use_gpu: bool) -> None:
    torch.set_num_threads(threads)
    need.ensured(mirror.local_path(folder), device=one_device(use_gpu=use_gpu).type)
