"""Models into memory: each pinned bundle with what runs it, one trunk for all that share it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.bundle.predictor import load_predictors
from orchestrator.bundle.zero_shot import TextTower, ZeroShotPredictor, tower_digest
from orchestrator.spec.parts import Runtime

from .endpoint import LocalEndpoint
from .limits import Limits
from .pinning import Pin, entry_of, fetched
from .watching import watched
from .worker import Worker


@dataclass(frozen=True)
class Model:
    """One version to be served, and how.

    Attributes:
        pin: Which bundle.
        runtime: What runs its weights.
        device: Where.
        threads: Of one forward pass.
        batch_rows: Inputs of several requests in one.
    """

    pin: Pin
    runtime: Runtime = "auto"
    device: str = "cpu"
    threads: int = 1
    batch_rows: int = 1

    @property
    def kind(self) -> tuple[Runtime, str, int, int]:
        """What models have in common that are loaded together."""
        return self.runtime, self.device, self.threads, self.batch_rows


def loaded(
    models: Iterable[Model], *, limits: Limits, worker: Worker
) -> dict[Model, LocalEndpoint]:
    """Each model, loaded here; it has answered a probe.

    Args:
        models: All that this process will serve; those of one frozen trunk share it, as those of
            one CLIP share its text tower.
        limits: On their requests.
        worker: The threads that they share. Explanations have one more, so that however many are
            asked for, predictions are not held up.
    """
    explainer = Worker(threads=1, queue=limits.queue)
    towers: dict[str, TextTower] = {}
    groups: dict[Any, list[Model]] = {}
    for model in models:
        groups.setdefault(model.kind, []).append(model)
    found: dict[Model, LocalEndpoint] = {}
    for group in groups.values():
        bundles = [fetched(model.pin) for model in group]
        predictors = load_predictors(
            bundles,
            runtime=group[0].runtime,
            device=group[0].device,
            threads=group[0].threads,
            batch_rows=group[0].batch_rows,
        )
        for model, bundle, predictor in zip(group, bundles, predictors, strict=True):
            entry = entry_of(model.pin, bundle, limits)
            open_one = None
            if entry.zero_shot:
                tower = towers.setdefault(tower_digest(bundle), TextTower(bundle))
                open_one = ZeroShotPredictor(predictor, tower)
            drift = watched(predictor, bundle)
            endpoint = LocalEndpoint(entry, predictor, worker, explainer, drift, open_one)
            endpoint.check()
            found[model] = endpoint
    return found
