"""Writing a Bundle: whole or not at all, and only if what was written answers like the model."""

from __future__ import annotations

import copy
import errno
import hashlib
import importlib.metadata
import platform
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import save

from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.frozen_trunk import frozen_cut, trunk_digest
from orchestrator.bundle.manifest import (
    MANIFEST,
    BundleManifest,
    Cut,
    Evaluation,
    FileEntry,
    FileName,
    Scores,
    TrunkReport,
    render,
    sealed,
)
from orchestrator.bundle.measuring import Model
from orchestrator.bundle.model_card import model_card
from orchestrator.bundle.onnx_export import Exported, NotExported, export_onnx, torch_outputs
from orchestrator.bundle.preparing import preparer_of
from orchestrator.bundle.torch_predictor import TorchPredictor, load_torch_predictor
from orchestrator.data.inputs import Prepared
from orchestrator.errors import BundleError, BundleTakenError, IntegrityError
from orchestrator.models.backbone import Backbone
from orchestrator.models.classifier import Classifier
from orchestrator.models.head import Head
from orchestrator.spec.clip_models import clip_config, is_clip
from orchestrator.spec.durable import sync_folder, write_durably
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, Contract, TaskSpec, TextContract, is_multilabel
from orchestrator.spec.record import Record
from orchestrator.spec.strategy import ZeroShot
from orchestrator.spec.text_encoders import encoder_config, encoder_tokenizer
from orchestrator.tasks.metrics import wilson_interval
from orchestrator.tasks.task import build_task

_LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "safetensors", "numpy", "pillow")
CLIP_CONFIG: FileName = "open_clip_config.json"
_FILE_OF: dict[str, FileName] = {
    "text.safetensors": "text.safetensors",
    "tokenizer.json": "tokenizer.json",
    "tokenizer_config.json": "tokenizer_config.json",
}


def write_bundle(
    folder: Path | str,
    *,
    experiment: Experiment,
    record: Record,
    backbone: Backbone,
    head: Head,
    test: Mapping[str, Any] | None,
    samples: Sequence[Prepared],
    created_at: str,
    n_examples: Mapping[str, int] | None = None,
    temperature: float = 1.0,
    threshold: float = 0.5,
    training: Iterable[Sequence[Prepared]] = (),
    cores: int | None = None,
) -> Bundle:
    """A new Bundle in `folder`, which appears there complete and verified or not at all.

    What was written is loaded again and must answer `samples` bit for bit as the model in memory
    does. The model itself is left as it is. Where ONNX Runtime answers them alike, the bundle has a
    model.onnx; elsewhere the manifest says why not.

    Args:
        folder: Must not exist yet, be empty, or hold a bundle of the same content, whatever its
            time; that one is then returned as it is.
        experiment: What was run.
        record: What came out; its `validation` becomes the bundle's.
        backbone: As trained, on any device.
        head: As trained, on any device.
        test: The winner's test result as the JSON of an `Evaluation`, such as `{"metrics":
            {"accuracy": 0.9}, "n_examples": 400, "per_class": […]}`; None if there was none.
        samples: uint8 [n, 3, S, S], real evaluation inputs, n at least 1.
        created_at: ISO 8601 with a time zone.
        n_examples: Examples in `train` and `validation`, where known; with the latter the
            validation accuracy has an interval.
        temperature: Divides the logits.
        threshold: Probability from which a label of a multi-label task is answered.
        training: Batches of training examples, each of as many views as `samples`; their features
            become the baseline that drift is measured from. There is none without them.
        cores: That latency is measured on; it is not measured when None.

    Raises:
        BundleError: If something else is in `folder`, or an argument is not allowed.
        IntegrityError: If the written bundle does not answer as the model does.
    """
    if record.experiment != experiment:
        raise BundleError(f"record {record.trial} is of another experiment than {experiment.id}")
    counts = dict(n_examples or {})
    scores = Scores(
        validation=_evaluation(
            {"metrics": record.validation, "n_examples": counts.get("validation")}, experiment.task
        ),
        test=None if test is None else _evaluation(test, experiment.task),
        n_train_examples=counts.get("train"),
    )
    classifier = _copied(Classifier(backbone, head, experiment.strategy))
    _refuse_unfit(classifier, experiment.input, samples)
    cut = frozen_cut(experiment, classifier.backbone)
    onnx = export_onnx(classifier, experiment.input, samples, cut=cut)
    contents: dict[FileName, bytes] = {
        "model.safetensors": _tensors(classifier),
        "experiment.json": render(experiment.to_json()),
        "record.json": render(record.to_json()),
        "MODEL_CARD.md": model_card(experiment, record, scores).encode(),
        **_encoder_files(experiment),
        **({"model.onnx": onnx.model} if isinstance(onnx, Exported) else {}),
    }
    model = Model(classifier, experiment.input, onnx)
    if baseline := model.baseline(training):
        contents["drift.json"] = render(baseline.to_json())
    manifest = sealed(
        {
            "task": experiment.task,
            "input": experiment.input,
            "backbone": BackboneSpec(name=experiment.backbone.name, weights="none"),
            "strategy": experiment.strategy,
            "temperature": temperature,
            "threshold": threshold,
            "scores": scores,
            "experiment": experiment.digest,
            "versions": _versions(),
            "created_at": created_at,
            "onnx": onnx.report if isinstance(onnx, Exported) else None,
            "without_onnx": onnx.reason if isinstance(onnx, NotExported) else None,
            "trunk": _trunk(experiment, classifier.backbone, cut, onnx),
            "latency": None if cores is None else model.latency(samples[0], cores),
            "files": {name: _entry(content) for name, content in contents.items()},
        }
    )
    return _publish(Path(folder).absolute(), manifest, contents, classifier, samples)


def _evaluation(value: Mapping[str, Any], task: TaskSpec) -> Evaluation:
    """`value` with the interval of its share of right examples, if it is of independent ones.

    The accuracy of a multi-label task counts the labels of one image as if they were independent:
    a binomial interval would be too narrow, so it gets none.
    """
    try:
        given = Evaluation.model_validate(value)
    except ValidationError as err:
        raise BundleError(f"not the scores of an evaluation: {err}") from err
    share = None if is_multilabel(task.kind) else build_task(task).share
    if share is None or not given.n_examples or share not in given.metrics:
        return given
    right = round(given.metrics[share] * given.n_examples)
    intervals = {share: wilson_interval(right, given.n_examples)} | given.intervals
    return given.model_copy(update={"intervals": intervals})


def _encoder_files(experiment: Experiment) -> dict[FileName, bytes]:
    """What rebuilds an encoder: its configuration, and what it needs to read texts."""
    if is_clip(experiment.backbone.name):
        return _clip_files(experiment)
    if not isinstance(experiment.input, TextContract):
        return {}
    tokenizer = encoder_tokenizer(experiment.backbone).to_str()
    return {
        "config.json": render(encoder_config(experiment.backbone)),
        "tokenizer.json": tokenizer.encode(),
    }


def _trunk(
    experiment: Experiment, backbone: Backbone, cut: Cut | None, onnx: Exported | NotExported
) -> TrunkReport | None:
    """What the frozen part is, where the model can be cut there."""
    if cut is None or not isinstance(onnx, Exported) or not onnx.tensors:
        return None
    return TrunkReport(
        digest=trunk_digest(experiment, backbone, cut), cut=cut, tensors=onnx.tensors
    )


def _clip_files(experiment: Experiment) -> dict[FileName, bytes]:
    """A CLIP's configuration; where nothing was trained, its text tower as well."""
    if not isinstance(experiment.strategy, ZeroShot):
        return {CLIP_CONFIG: render(clip_config(experiment.backbone))}
    from orchestrator.models.clip import load_clip, text_side

    clip = load_clip(experiment.backbone)
    if clip.digest != experiment.weights_digest:
        raise IntegrityError(
            f"the weights of {experiment.backbone.name} have changed since the experiment was run. "
            "Restore them"
        )
    config, files = text_side(clip)
    return {CLIP_CONFIG: render(config), **{_FILE_OF[name]: raw for name, raw in files.items()}}


def _copied(classifier: Classifier) -> Classifier:
    return copy.deepcopy(classifier).cpu().requires_grad_(False).eval()


def _tensors(classifier: Classifier) -> bytes:
    """The weights as safetensors; each tensor a dense copy, since the format allows no sharing."""
    state = classifier.state_dict()
    return save({name: tensor.contiguous().clone() for name, tensor in state.items()})


def _entry(content: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version()} | libraries


def _publish(
    folder: Path,
    manifest: BundleManifest,
    contents: Mapping[FileName, bytes],
    classifier: Classifier,
    samples: Sequence[Prepared],
) -> Bundle:
    with _staging(folder) as staging:
        for name, content in contents.items():
            write_durably(staging / name, content)
        write_durably(staging / MANIFEST, render(manifest.to_json()))
        _prove(open_bundle(staging), classifier, samples)
        try:
            staging.rename(folder)  # replaces an empty folder, refuses any other
        except OSError as err:
            if err.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            return _existing(folder, manifest)
        sync_folder(folder.parent)
    return open_bundle(folder)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, so that a rename can publish it; gone at the end."""
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _existing(folder: Path, manifest: BundleManifest) -> Bundle:
    try:
        existing = open_bundle(folder)
    except (BundleError, IntegrityError) as err:
        raise BundleError(f"{folder} is taken and is no whole bundle. Choose another") from err
    if not existing.manifest.same_content(manifest):
        raise BundleTakenError(
            f"{folder} already holds another bundle ({existing.digest[:12]}, written "
            f"{existing.manifest.created_at}). Choose another folder; bundles are not overwritten"
        )
    return existing


def _refuse_unfit(classifier: Classifier, contract: Contract, samples: Sequence[Prepared]) -> None:
    if not samples or not len(samples[0]):
        raise BundleError("samples: none given. Give real evaluation inputs to compare answers on")
    if not np.isfinite(torch_outputs(classifier, contract, samples[0]).logits).all():
        raise BundleError("the model answers NaN or infinity on real inputs. Train it again")


def _prove(bundle: Bundle, classifier: Classifier, samples: Sequence[Prepared]) -> None:
    """Refuse a bundle that does not answer as the model that it was written from."""
    cpu = torch.device("cpu")
    model = TorchPredictor(bundle.manifest, classifier, preparer_of(bundle), device=cpu)
    expected = model.outputs(samples).logits
    written = load_torch_predictor(bundle, device="cpu", threads=None).outputs(samples).logits
    if written.tobytes() != expected.tobytes():
        gap = float(np.abs(written - expected).max())
        raise IntegrityError(
            f"the written model's logits differ from the model's in memory by up to {gap:.3g}: "
            "part of it is not among its parameters and buffers, so it cannot be kept"
        )
