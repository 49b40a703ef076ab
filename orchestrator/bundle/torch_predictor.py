"""The Predictor that runs on torch."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.manifest import BundleManifest
from orchestrator.bundle.predictor import NetworkPredictor, Outputs
from orchestrator.bundle.preparing import Preparer, preparer_of
from orchestrator.data.inputs import Prepared
from orchestrator.errors import BundleError, SpecError
from orchestrator.features.network_inputs import network_inputs
from orchestrator.models.building import build_backbone
from orchestrator.models.classifier import Classifier, build_classifier_head
from orchestrator.spec.clip_models import is_clip
from orchestrator.spec.parts import TextContract


class TorchPredictor(NetworkPredictor):
    """Answers with a Classifier in eval mode, channels-last: CPUs and GPUs both favour that."""

    def __init__(
        self,
        manifest: BundleManifest,
        classifier: Classifier,
        preparer: Preparer,
        *,
        device: torch.device,
    ) -> None:
        n_features = classifier.backbone.feature_width(classifier.pooling)
        super().__init__(manifest, preparer, n_features=n_features)
        self._device = device
        self._classifier = classifier.eval().to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(self, prepared: Prepared) -> Outputs:
        inputs = network_inputs(prepared, self._manifest.input, self._device)
        found = self._classifier.outputs(inputs)
        return Outputs(found.logits.float().cpu().numpy(), found.features.float().cpu().numpy())


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
    """The architecture with random weights; an encoder's is described in the bundle itself."""
    manifest, spec = bundle.manifest, bundle.manifest.backbone
    if isinstance(manifest.input, TextContract) or is_clip(spec.name):
        spec = spec.model_copy(update={"folder": str(bundle.path)})
    backbone = build_backbone(spec, size=manifest.input.size)
    params = manifest.strategy
    head = build_classifier_head(backbone, params, n_outputs=len(manifest.task.outputs))
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
