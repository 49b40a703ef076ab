from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import nn

from orchestrator.bundle import onnx_export
from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.predictor import load_predictor, resolved_runtime
from orchestrator.bundle.torch_predictor import Classifier, TorchPredictor
from orchestrator.bundle.writing import write_bundle
from orchestrator.errors import BundleError, IntegrityError
from orchestrator.models.backbone import Backbone
from orchestrator.models.building import build_backbone
from orchestrator.models.head import build_head
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.record import Record
from orchestrator.tasks.metrics import wilson_interval

AT = "2026-01-31T12:00:00Z"
Write = Callable[..., Bundle]


@pytest.fixture(scope="module")
def backbone(experiment: Experiment) -> Backbone:
    """Trained a little: batch norms have statistics of their own."""
    spec = BackboneSpec(name=experiment.backbone.name, weights="none")
    built = build_backbone(spec, size=64, seed=3).train()
    with torch.no_grad():
        built.features(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return built


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 3, 64, 64), np.uint8)


@pytest.fixture
def head(experiment: Experiment, backbone: Backbone) -> nn.Module:
    return build_head(
        experiment.strategy, n_features=backbone.feature_width("last"), n_outputs=3, seed=5
    )


@pytest.fixture
def write(
    experiment: Experiment, record: Record, backbone: Backbone, head: nn.Module, samples: np.ndarray
) -> Write:
    def call(folder: Path, **changes: Any) -> Bundle:
        arguments: dict[str, Any] = {
            "experiment": experiment,
            "record": record,
            "backbone": backbone,
            "head": head,
            "test": None,
            "samples": [samples],
            "created_at": AT,
        }
        return write_bundle(folder, **{**arguments, **changes})

    return call


def test_the_bundle_answers_as_the_model_in_memory(
    write: Write,
    tmp_path: Path,
    backbone: Backbone,
    head: nn.Module,
    samples: np.ndarray,
    experiment: Experiment,
) -> None:
    write(tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    contract = bundle.input
    mean = torch.tensor(contract.mean).view(3, 1, 1)
    std = torch.tensor(contract.std).view(3, 1, 1)
    images = (torch.from_numpy(samples).float() / 255 - mean) / std
    model = copy.deepcopy(Classifier(backbone, head, experiment.strategy)).eval()
    with torch.inference_mode():
        expected = model(images).softmax(dim=1).numpy()
    answered = load_predictor(bundle).probabilities([samples])
    np.testing.assert_allclose(answered, expected, rtol=1e-4, atol=1e-6)
    assert np.ptp(answered, axis=0).max() > 1e-4  # the inputs are told apart at all


def test_all_tensors_are_written_bit_for_bit(
    write: Write, tmp_path: Path, backbone: Backbone, head: nn.Module, experiment: Experiment
) -> None:
    bundle = write(tmp_path / "bundle")
    written = load(bundle.read("model.safetensors"))
    state = Classifier(backbone, head, experiment.strategy).state_dict()
    assert written.keys() == state.keys()
    for name, tensor in state.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor), name


def test_two_loads_answer_alike(write: Write, tmp_path: Path, samples: np.ndarray) -> None:
    bundle = write(tmp_path / "bundle")
    first, second = (load_predictor(bundle).probabilities([samples]) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_the_folder_has_these_files_and_nothing_else(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "sub/bundle")
    assert {path.name for path in (tmp_path / "sub").iterdir()} == {"bundle"}
    assert {path.name for path in (tmp_path / "sub/bundle").iterdir()} == {
        "bundle.json",
        "model.safetensors",
        "experiment.json",
        "record.json",
        "MODEL_CARD.md",
        "model.onnx",
    }


def test_writing_leaves_the_model_as_it_was(
    write: Write, tmp_path: Path, backbone: Backbone, head: nn.Module, experiment: Experiment
) -> None:
    before = copy.deepcopy(Classifier(backbone, head, experiment.strategy).state_dict())
    modes = [module.training for module in backbone.modules()]
    write(tmp_path / "bundle")
    assert [module.training for module in backbone.modules()] == modes
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert next(backbone.parameters()).is_contiguous()
    for name, tensor in Classifier(backbone, head, experiment.strategy).state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_manifest_carries_the_evidence(
    write: Write, tmp_path: Path, experiment: Experiment, record: Record
) -> None:
    test = {
        "metrics": {"accuracy": 0.9, "f1_macro": 0.85},
        "n_examples": 100,
        "intervals": {"f1_macro": (0.8, 0.9)},
        "per_class": [
            {"label": "good", "precision": 1, "recall": 1, "f1": 1, "roc_auc": None, "support": 9}
        ],
    }
    bundle = write(
        tmp_path / "bundle", test=test, n_examples={"train": 500, "validation": 50}, temperature=1.3
    )
    scores = bundle.scores
    assert scores.validation.metrics == record.validation
    assert scores.validation.intervals == {"accuracy": wilson_interval(40, 50)}
    assert scores.test is not None
    assert scores.test.intervals == {"accuracy": wilson_interval(90, 100), "f1_macro": (0.8, 0.9)}
    assert scores.n_train_examples == 500
    assert bundle.manifest.temperature == 1.3
    assert bundle.manifest.experiment == experiment.digest
    assert bundle.manifest.created_at == AT
    assert bundle.manifest.versions["torch"] == torch.__version__.split("+")[0]
    assert bundle.manifest.backbone.weights == "none"
    assert bundle.manifest.onnx is not None
    assert 0 <= bundle.manifest.onnx.max_difference <= bundle.manifest.onnx.tolerance
    assert bundle.manifest.without_onnx is None
    assert bundle.experiment() == experiment
    assert bundle.record() == record
    card = bundle.read("MODEL_CARD.md").decode()
    assert "0.9000 [0.8256, 0.9448]" in card
    assert "### By class, on test" in card


def test_a_model_that_onnx_runtime_does_not_answer_alike_is_written_without(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: np.ndarray
) -> None:
    monkeypatch.setattr(onnx_export, "TOLERANCE", 0.0)  # which no float32 model of this size meets
    bundle = write(tmp_path / "bundle", samples=[samples])
    assert "model.onnx" not in bundle.manifest.files
    assert bundle.manifest.onnx is None
    assert "differ from torch's by" in str(bundle.manifest.without_onnx)
    assert isinstance(load_predictor(bundle), TorchPredictor)


@pytest.mark.parametrize("tolerance", [onnx_export.TOLERANCE, 0.0])
def test_usual_features_and_latency_are_recorded_whatever_runs_the_model(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tolerance: float
) -> None:
    monkeypatch.setattr(onnx_export, "TOLERANCE", tolerance)
    images = np.random.default_rng(1).integers(0, 256, (12, 3, 64, 64), np.uint8)
    bundle = write(tmp_path / "bundle", training=[[images[:8]], [images[8:]]], cores=1)
    baseline = bundle.drift_baseline()
    assert baseline is not None
    embeddings = load_predictor(bundle).embeddings([images])
    assert baseline.n == 12
    np.testing.assert_allclose(baseline.mean, embeddings.mean(axis=0), rtol=1e-3, atol=1e-5)
    curve = bundle.manifest.latency
    assert curve is not None
    assert curve.runtime == resolved_runtime(bundle, "auto")
    assert [point.batch for point in curve.points] == [1, 2, 4, 8, 16]
    assert torch.get_num_threads() == 1
    assert write(tmp_path / "bundle", training=[[images]], cores=1) == bundle


def test_without_training_examples_there_is_no_baseline(write: Write, tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")
    assert bundle.drift_baseline() is None
    assert bundle.manifest.latency is None


def test_the_same_content_is_written_once(write: Write, tmp_path: Path) -> None:
    first = write(tmp_path / "bundle")
    inode = (tmp_path / "bundle/bundle.json").stat().st_ino
    again = write(tmp_path / "bundle", created_at="2027-01-01T00:00:00Z")
    assert again == first
    assert (tmp_path / "bundle/bundle.json").stat().st_ino == inode


def test_another_bundle_is_not_overwritten(write: Write, tmp_path: Path) -> None:
    first = write(tmp_path / "bundle")
    with pytest.raises(BundleError, match=f"another bundle \\({first.digest[:12]}"):
        write(tmp_path / "bundle", temperature=2.0)
    assert open_bundle(tmp_path / "bundle") == first


def test_what_is_no_bundle_is_not_overwritten(write: Write, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("notes", "file"):
        with pytest.raises(BundleError, match="is taken"):
            write(tmp_path / name)
    assert (tmp_path / "notes/mine.txt").read_text() == "keep"
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "file"}


def test_an_empty_folder_is_filled(write: Write, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    assert write(tmp_path / "bundle").path == tmp_path / "bundle"


def test_a_model_that_cannot_be_rebuilt_is_refused_and_leaves_nothing(
    write: Write, tmp_path: Path, head: nn.Module
) -> None:
    """A hook changes what the model answers and is not among its tensors."""
    head.register_forward_hook(lambda module, inputs, output: output + 1e-3)
    with pytest.raises(IntegrityError, match=r"differ from the model's in memory by up to 0\.001"):
        write(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_does_not_fit_the_experiment_is_refused(
    write: Write, tmp_path: Path, experiment: Experiment, backbone: Backbone
) -> None:
    wide = build_head(
        experiment.strategy, n_features=backbone.feature_width("last"), n_outputs=4, seed=5
    )
    with pytest.raises(BundleError, match=r"does not fit mobilenetv3_small_100"):
        write(tmp_path / "bundle", head=wide)


def test_a_model_that_answers_nan_is_refused(write: Write, tmp_path: Path, head: nn.Module) -> None:
    with torch.no_grad():
        next(head.parameters()).fill_(float("nan"))
    with pytest.raises(BundleError, match="NaN"):
        write(tmp_path / "bundle")


def test_tensors_that_share_memory_or_are_not_contiguous_are_kept(
    write: Write, tmp_path: Path, backbone: Backbone
) -> None:
    shared = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
    norms = [m for m in shared.modules() if isinstance(m, nn.BatchNorm2d)]
    a, b = next(
        (x, y) for x in norms for y in norms if x is not y and x.num_features == y.num_features
    )
    a.weight = b.weight
    written = load(write(tmp_path / "bundle", backbone=shared).read("model.safetensors"))
    assert all(tensor.is_contiguous() for tensor in written.values())
    assert {f"backbone.{name}" for name in shared.state_dict()} <= written.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": [np.empty((0, 3, 64, 64), np.uint8)]}, "samples: none given"),
        ({"created_at": "2026-01-31"}, "no time zone"),
        ({"test": {"metrics": {"accuracy": "high"}}}, r"metrics\.accuracy"),
        ({"test": {"accuracy": 0.9}}, "metrics"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_an_impossible_argument_is_named_and_nothing_is_written(
    write: Write, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        write(tmp_path / "bundle", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_another_experiment_is_refused(
    write: Write, tmp_path: Path, experiment: Experiment
) -> None:
    other = experiment.model_copy(update={"data_digest": "f" * 64})
    with pytest.raises(BundleError, match=re.escape(other.id)):
        write(tmp_path / "bundle", experiment=other)
