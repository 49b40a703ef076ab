"""Filling the FeatureStore over the cluster: one Ray task a part, each finished part kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from orchestrator.data.examples import Examples
from orchestrator.features.filling import compute_features, feature_key, search_rows
from orchestrator.features.store import FeatureKey, FeatureStore
from orchestrator.runtime.process_cache import open_examples, pristine_backbone
from orchestrator.spec.parts import BackboneSpec, InputContract
from orchestrator.spec.strategy import Pooling


@dataclass(frozen=True)
class FeatureNeed:
    """Features that some trials of a sweep will read."""

    backbone: BackboneSpec
    weights_digest: str
    input: InputContract
    pooling: Pooling
    view: int


def fill_features(
    needs: Sequence[FeatureNeed],
    *,
    data: Path,
    store: FeatureStore,
    cpus: float,
    gpus: float,
    progress: Callable[[str, int, int], None],
) -> float:
    """Compute what the store lacks of `needs`, in parallel over the cluster.

    Args:
        needs: What will be read.
        data: The folder of the data set's index, seen by every node.
        store: Seen by every node.
        cpus: Of each task, and its threads.
        gpus: Of each task.
        progress: Told the backbone's name, images done and images to do.

    Returns:
        Share of the needs that were there already: the hits.
    """
    examples = open_examples(data)
    rows = search_rows(examples)
    hits = 0
    for need in needs:
        key = _key(need, examples)
        if store.find(key) is not None:
            hits += 1
            continue
        parts = store.missing(key, n_rows=len(rows))
        done = len(rows) - sum(len(part) for part in parts)
        view = f", view {need.view}" if need.view else ""
        label = f"{need.backbone.name} {need.pooling} features at {need.input.size} px{view}"
        progress(label, done, len(rows))
        task = _fill_part.options(num_cpus=cpus, num_gpus=gpus)
        waiting = {
            task.remote(need, part, str(data), str(store.root), max(1, int(cpus))): len(part)
            for part in parts
        }
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            ray.get(ready)
            done += sum(waiting.pop(ref) for ref in ready)
            progress(label, done, len(rows))
        store.seal(key, n_rows=len(rows))
    return hits / max(1, len(needs))


@ray.remote(max_retries=3)
def _fill_part(need: FeatureNeed, part: range, data: str, root: str, threads: int) -> None:
    torch.set_num_threads(threads)
    examples = open_examples(Path(data))
    rows = search_rows(examples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = pristine_backbone(
        need.backbone, image_size=need.input.size, expected_digest=need.weights_digest, seed=0
    )
    features = compute_features(
        backbone,
        examples,
        rows[part.start : part.stop],
        contract=need.input,
        pooling=need.pooling,
        view=need.view,
        device=device,
        threads=threads,
    )
    FeatureStore(Path(root)).put(_key(need, examples), part, features)


def _key(need: FeatureNeed, examples: Examples) -> FeatureKey:
    return feature_key(
        need.backbone,
        need.weights_digest,
        need.input,
        examples.digest,
        pooling=need.pooling,
        view=need.view,
    )
