"""Filling the FeatureStore over the cluster: one Ray task a part, each finished part kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import ray
import torch

from orchestrator.data.examples import Examples
from orchestrator.data.pieces import pieces_of
from orchestrator.errors import IntegrityError
from orchestrator.features.filling import compute_outputs, feature_key, search_rows
from orchestrator.features.store import FeatureKey, FeatureStore
from orchestrator.models.backbone import Output
from orchestrator.models.placing import one_device
from orchestrator.runtime.process_cache import open_examples, pristine_backbone
from orchestrator.spec import mirror
from orchestrator.spec.parts import BackboneSpec, Contract, size_text
from orchestrator.spec.strategy import Augment, StoredPrecision

CANCELLED_WITHIN_S = 30.0


@dataclass(frozen=True)
class Pass:
    """A forward pass of a frozen backbone over the data; what it is needed for varies."""

    backbone: BackboneSpec
    weights_digest: str
    input: Contract
    view: int
    augment: Augment = "none"

    def rows(self, examples: Examples) -> npt.NDArray[np.int64]:
        """The pieces of a data set that it is made for."""
        return search_rows(pieces_of(examples, self.input))

    def key(self, examples: Examples, output: Output, precision: StoredPrecision) -> FeatureKey:
        """The store's key of one of its outputs."""
        return feature_key(
            self.backbone,
            self.weights_digest,
            self.input,
            examples.digest,
            output=output,
            view=self.view,
            augment=self.augment,
            precision=precision,
        )


@dataclass(frozen=True)
class FeatureNeed:
    """Stored outputs that some trials of a sweep will read."""

    source: Pass
    output: Output
    precision: StoredPrecision = "fp32"

    def key(self, examples: Examples) -> FeatureKey:
        """The store's key."""
        return self.source.key(examples, self.output, self.precision)

    def __str__(self) -> str:
        what = (
            f"{self.output} features"
            if isinstance(self.output, str)
            else f"activations after stage {self.output}"
        )
        view, augment = self.source.view, self.source.augment
        seen = f", {augment} draw {view}" if augment != "none" else f", view {view}" if view else ""
        return f"{self.source.backbone.name} {what} at {size_text(self.source.input)}{seen}"


def fill_features(
    needs: Sequence[FeatureNeed],
    *,
    data: Path,
    store: FeatureStore,
    cpus: float,
    gpus: float,
    progress: Callable[[str, int, int], None],
    onnx: bool = True,
) -> float:
    """Compute what the store lacks of `needs`, in parallel over the cluster.

    All outputs of one pass are computed together. What is damaged is computed again.

    Args:
        needs: What will be read.
        data: The folder of the data set's index, seen by every node.
        store: Seen by every node.
        cpus: Of each task, and its threads.
        gpus: Of each task.
        progress: Told what is filled, images done and images to do.
        onnx: Whether CPUs may run the passes through ONNX Runtime.

    Returns:
        Share of the needs that were there already: the hits.

    Raises:
        IntegrityError: An output is not finite, or the weights have changed.
        OSError: A part cannot be written. What is finished stays.
    """
    examples = open_examples(data)
    absent = [need for need in needs if not is_stored(store, need.key(examples))]
    jobs: dict[tuple[Pass, range], list[FeatureNeed]] = {}
    for need in absent:
        for part in store.missing(need.key(examples), n_rows=len(need.source.rows(examples))):
            jobs.setdefault((need.source, part), []).append(need)
    task = _fill_part.options(num_cpus=cpus, num_gpus=gpus)
    done, total = 0, sum(len(part) for _, part in jobs)
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1) / cpus))
    work = _Work(
        data=mirror.location_of(data),
        root=mirror.location_of(store.root),
        threads=max(1, int(cpus)),
        use_gpu=gpus > 0,
        expected=total // at_once if onnx else None,
    )
    waiting = {
        task.remote(tuple(wanted), part, work): (source, part)
        for (source, part), wanted in jobs.items()
    }
    if total:
        progress(_label(next(iter(jobs))[0]), 0, total)
    try:
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            ray.get(ready)
            source, part = waiting.pop(ready)
            done += len(part)
            progress(_label(source), done, total)
    except ray.exceptions.RayTaskError as err:
        raise err.cause from err
    finally:
        for ref in waiting:
            ray.cancel(ref)
        if waiting:  # until each has taken its half-written file away
            ray.wait(list(waiting), num_returns=len(waiting), timeout=CANCELLED_WITHIN_S)
    for need in absent:
        n_rows = len(need.source.rows(examples))
        store.seal(need.key(examples), n_rows=n_rows)
    return 1 - len(absent) / max(1, len(needs))


def is_stored(store: FeatureStore, key: FeatureKey) -> bool:
    """Whether an entry is there and whole; what is damaged of it is removed."""
    try:
        return store.has(key)
    except IntegrityError:
        store.remove_damaged(key)
        return store.has(key)


def _label(source: Pass) -> str:
    return f"forward passes of {source.backbone.name} at {size_text(source.input)}"


@dataclass(frozen=True)
class _Work:
    """What all tasks of one filling share: data, store, devices, and each process's images."""

    data: str
    root: str
    threads: int
    use_gpu: bool
    expected: int | None


@ray.remote(max_retries=3)
def _fill_part(needs: tuple[FeatureNeed, ...], part: range, work: _Work) -> None:
    """Compute one part of several entries that one pass gives."""
    torch.set_num_threads(work.threads)
    examples = open_examples(mirror.local_path(work.data))
    source = needs[0].source
    backbone = pristine_backbone(
        source.backbone,
        size=source.input.size,
        expected_digest=source.weights_digest,
        seed=0,
    )
    store = FeatureStore(mirror.local_path(work.root))
    with ExitStack() as parts:
        writers = [parts.enter_context(store.writing(need.key(examples), part)) for need in needs]
        for values in compute_outputs(
            backbone,
            examples,
            source.rows(examples)[part.start : part.stop],
            [need.output for need in needs],
            contract=source.input,
            view=source.view,
            augment=source.augment,
            device=one_device(use_gpu=work.use_gpu),
            threads=work.threads,
            expected=work.expected,
        ):
            for writer, rows in zip(writers, values, strict=True):
                writer.write(rows)
