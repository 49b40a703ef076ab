"""Input drift as it is served: every answered input's features against the training set's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.drift import Drift, DriftGauge
from orchestrator.bundle.manifest import BundleManifest
from orchestrator.bundle.predictor import Floats, Outputs, Predictor, answers
from orchestrator.bundle.preparing import Input, Preparer
from orchestrator.data.inputs import Prepared
from orchestrator.spec.parts import by_position


class Watched:
    """A Predictor that counts what it answers into a drift gauge; the features cost no pass more.

    Args:
        predictor: That answers.
        gauge: Of its bundle.
    """

    def __init__(self, predictor: Predictor, gauge: DriftGauge) -> None:
        self._predictor = predictor
        self._gauge = gauge
        self._lock = threading.Lock()

    @property
    def manifest(self) -> BundleManifest:
        return self._predictor.manifest

    @property
    def preparer(self) -> Preparer:
        return self._predictor.preparer

    def drift(self) -> Drift | None:
        """Of the newest inputs; None before the first."""
        with self._lock:
            return self._gauge.read()

    def outputs(self, views: Sequence[Prepared]) -> Outputs:
        found = self._predictor.outputs(views)
        with self._lock:
            self._gauge.add(found.features)
        return found

    def probabilities(self, views: Sequence[Prepared]) -> Floats:
        return self.calibrated(self.outputs(views).logits)

    def embeddings(self, views: Sequence[Prepared]) -> Floats:
        return self.outputs(views).features

    def calibrated(self, logits: Floats) -> Floats:
        return self._predictor.calibrated(logits)

    def predict(
        self, inputs: Sequence[Input], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[dict[str, Any]]:
        return answers(self, inputs, top=top, batch_size=batch_size)


def watched(predictor: Predictor, bundle: Bundle) -> Watched | None:
    """The same predictor, watched; None where nobody recorded what inputs are usual.

    Tasks whose head answers for every token are not watched.
    """
    baseline = bundle.drift_baseline()
    if baseline is None or by_position(bundle.task.kind):
        return None
    return Watched(predictor, DriftGauge(baseline))
