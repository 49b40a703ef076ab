"""The Predictor that runs on torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.manifest import BundleManifest
from orchestrator.bundle.predictor import Probabilities, answers, calibrated_task
from orchestrator.bundle.preparing import Input, Preparer, preparer_of
from orchestrator.data.inputs import Prepared
from orchestrator.data.tokens import TokenRows
from orchestrator.errors import BundleError, SpecError
from orchestrator.features.network_inputs import network_inputs
from orchestrator.models.building import build_backbone
from orchestrator.models.classifier import Classifier, build_classifier_head, mean_logits
from orchestrator.spec.parts import TextContract


class TorchPredictor:
    """Answers with a Classifier in eval mode, channels-last: CPUs and GPUs both favour that."""

    def __init__(
        self,
        manifest: BundleManifest,
        classifier: Classifier,
        preparer: Preparer,
        *,
        device: torch.device,
    ) -> None:
        self._manifest = manifest
        self._preparer = preparer
        self._task = calibrated_task(manifest)
        self._device = device
        self._classifier = classifier.eval().to(device).to(memory_format=torch.channels_last)

    @property
    def manifest(self) -> BundleManifest:
        return self._manifest

    @property
    def preparer(self) -> Preparer:
        return self._preparer

    @torch.inference_mode()
    def logits(self, views: Sequence[Prepared]) -> npt.NDArray[np.float32]:
        """What the head says, before temperature: float32 [N, C]."""
        for view in views:
            self._refuse_other_shapes(view)
        if not len(views[0]):
            return np.empty((0, self._task.n_outputs), np.float32)
        inputs = [network_inputs(view, self._manifest.input, self._device) for view in views]
        return mean_logits([self._classifier(view).float() for view in inputs]).cpu().numpy()

    def probabilities(self, views: Sequence[Prepared]) -> Probabilities:
        scaled = self.logits(views) / np.float32(self._manifest.temperature)
        return self._task.probabilities(scaled).astype(np.float32, copy=False)

    def predict(
        self, inputs: Sequence[Input], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[dict[str, Any]]:
        return answers(self, inputs, top=top, batch_size=batch_size)

    def _refuse_other_shapes(self, prepared: Prepared) -> None:
        size = self._manifest.input.size
        if isinstance(prepared, TokenRows):
            return
        if prepared.dtype != np.uint8 or prepared.shape[1:] != (3, size, size):
            raise SpecError(
                f"pixels: {prepared.dtype} {list(prepared.shape)} is not uint8 "
                f"[N, 3, {size}, {size}]. Use the predictor's preparer"
            )


def load_torch_predictor(bundle: Bundle, *, device: str, threads: int | None) -> TorchPredictor:
    """See `load_predictor`."""
    where = _device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    classifier = _build(bundle)
    _fill(classifier, bundle)
    return TorchPredictor(bundle.manifest, classifier, preparer_of(bundle), device=where)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise SpecError(f"device: {name!r} is none. Use cpu, cuda or cuda:N") from err
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SpecError(
            f"device: {name!r} is not on this machine, which has {torch.cuda.device_count()} "
            "CUDA devices. Use cpu"
        )
    return device


def _build(bundle: Bundle) -> Classifier:
    """The architecture with random weights; a text encoder's is described in the bundle itself."""
    manifest, spec = bundle.manifest, bundle.manifest.backbone
    if isinstance(manifest.input, TextContract):
        spec = spec.model_copy(update={"folder": str(bundle.path)})
    backbone = build_backbone(spec, size=manifest.input.size)
    params = manifest.strategy
    head = build_classifier_head(backbone, params, n_outputs=len(manifest.task.labels))
    return Classifier(backbone, head, params)


def _fill(classifier: Classifier, bundle: Bundle) -> None:
    try:
        classifier.load_state_dict(load(bundle.read("model.safetensors")), strict=True)
    except (SafetensorError, RuntimeError, KeyError) as err:  # KeyError: a type torch lacks
        versions = ", ".join(f"{name} {v}" for name, v in bundle.manifest.versions.items())
        raise BundleError(
            f"{bundle.path}: model.safetensors does not fit {bundle.manifest.backbone.name} as the "
            f"installed libraries build it. It was written with {versions}: {err}"
        ) from err
