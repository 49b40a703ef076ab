"""What a Bundle is measured for before it is written: usual features, and latency."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from orchestrator.bundle.drift import DriftBaseline, drift_baseline
from orchestrator.bundle.latency import LatencyCurve, Runner, measure_latency
from orchestrator.bundle.onnx_export import Exported, NotExported, torch_outputs
from orchestrator.bundle.onnx_predictor import open_session, run_session
from orchestrator.bundle.predictor import Outputs, mean_outputs
from orchestrator.data.inputs import Prepared, taken
from orchestrator.models.classifier import Classifier
from orchestrator.spec.parts import Contract


@dataclass(frozen=True)
class Model:
    """A Classifier as CPUs will run it: through ONNX Runtime where it was exported."""

    classifier: Classifier
    contract: Contract
    onnx: Exported | NotExported

    def baseline(self, training: Iterable[Sequence[Prepared]]) -> DriftBaseline | None:
        """What the features of training examples are like; None without examples.

        Args:
            training: Batches of examples, each as its views.
        """
        run = self._runner(threads=None)
        features = [mean_outputs([run(view) for view in views]).features for views in training]
        return drift_baseline(np.concatenate(features)) if features else None

    def latency(self, inputs: Prepared, cores: int) -> LatencyCurve:
        """How long batches of such inputs take on up to `cores` threads."""

        def load(threads: int) -> Callable[[int], object]:
            run = self._runner(threads=threads)
            return lambda size: run(taken(inputs, np.arange(size) % len(inputs)))

        before = torch.get_num_threads()
        try:
            runtime: Runner = "onnx" if isinstance(self.onnx, Exported) else "torch"
            return measure_latency(load, runtime=runtime, cores=cores)
        finally:
            torch.set_num_threads(before)

    def _runner(self, *, threads: int | None) -> Callable[[Prepared], Outputs]:
        if isinstance(self.onnx, Exported):
            return partial(run_session, open_session(self.onnx.model, threads=threads))
        if threads is not None:
            torch.set_num_threads(threads)
        return partial(torch_outputs, self.classifier, self.contract)
