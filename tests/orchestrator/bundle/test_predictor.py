from __future__ import annotations

import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.onnx_predictor import OnnxPredictor
from orchestrator.bundle.predictor import Predictor, load_predictor, resolved_runtime
from orchestrator.bundle.torch_predictor import TorchPredictor
from orchestrator.data.transforms import eval_pixels_of
from orchestrator.errors import BundleError, SpecError
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import TaskSpec
from orchestrator.spec.record import Record
from tests.orchestrator.bundle.small_bundles import answered_in_a_new_process
from tests.orchestrator.bundle.small_bundles import image_bundle as written


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, experiment: Experiment, record: Record
) -> Bundle:
    return written(tmp_path_factory.mktemp("predictor") / "bundle", experiment, record)


@pytest.fixture(scope="module", params=["torch", "onnx"])
def predictor(bundle: Bundle, request: pytest.FixtureRequest) -> Predictor:
    """Every runtime keeps the same contract."""
    return load_predictor(bundle, runtime=request.param)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(values).resize((160, 120))


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def test_probabilities_are_float32_and_sum_to_one(predictor: Predictor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), np.uint8)
    probs = predictor.probabilities([pixels])
    assert probs.dtype == np.float32
    assert probs.shape == (4, 3)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(predictor.probabilities([pixels[:0]]), np.empty((0, 3)))


def test_embeddings_and_probabilities_are_those_of_one_pass(predictor: Predictor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), np.uint8)
    outputs = predictor.outputs([pixels])
    embeddings = predictor.embeddings([pixels])
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, outputs.features)
    np.testing.assert_array_equal(
        predictor.probabilities([pixels]), predictor.calibrated(outputs.logits)
    )
    np.testing.assert_allclose(predictor.embeddings([pixels[2:3]])[0], embeddings[2], atol=1e-5)
    assert predictor.embeddings([pixels[:0]]).shape == (0, embeddings.shape[1])


def test_both_runtimes_answer_alike(bundle: Bundle) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 64, 64), np.uint8)
    onnx, torch_ = (load_predictor(bundle, runtime=name) for name in ("onnx", "torch"))
    assert isinstance(onnx, OnnxPredictor)
    assert isinstance(torch_, TorchPredictor)
    found, expected = onnx.outputs([pixels]), torch_.outputs([pixels])
    assert np.ptp(expected.logits, axis=0).max() > 1e-2  # the inputs are told apart at all
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(found.features, expected.features, atol=1e-4)


def test_auto_is_onnx_on_the_cpu_where_the_bundle_has_it(bundle: Bundle, plain: Bundle) -> None:
    assert resolved_runtime(bundle, "auto") == "onnx"
    assert resolved_runtime(bundle, "auto", device="cuda:0") == "torch"
    assert resolved_runtime(plain, "auto") == "torch"
    with pytest.raises(SpecError, match="'cuda', but runtime onnx has only cpu"):
        load_predictor(bundle, runtime="onnx", device="cuda")


def test_a_bundle_without_onnx_says_why_there_is_none(write_plain, tmp_path: Path) -> None:
    bundle = write_plain(tmp_path / "refused", without_onnx="it has no ONNX form (eig)")
    with pytest.raises(BundleError, match=r"no model\.onnx: it has no ONNX form \(eig\). Use run"):
        load_predictor(bundle, runtime="onnx")
    with pytest.raises(BundleError, match="written by a version that made none"):
        load_predictor(write_plain(tmp_path / "old"), runtime="onnx")


@pytest.mark.parametrize("content", [b"", b"w" * 1000, b"\x08\x07" + b"\xff" * 100])
def test_a_model_that_onnx_runtime_refuses_is_named(
    write_plain, tmp_path: Path, content: bytes
) -> None:
    """Its digest is right: whoever wrote the bundle wrote these bytes."""
    bundle = write_plain(tmp_path / "hostile", onnx=content)
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded"):
        load_predictor(bundle)


def test_answering_imports_no_torch(bundle: Bundle, photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(photo))
    answer, imported = answered_in_a_new_process(bundle, str(path))
    assert answer["label"] in bundle.labels
    assert imported == []


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((3, 64, 64), np.uint8),
        np.zeros((1, 3, 64, 64), np.float32),
    ],
)
def test_pixels_of_another_shape_or_type_are_refused(
    predictor: Predictor, pixels: np.ndarray
) -> None:
    with pytest.raises(SpecError, match=r"is not uint8 \[N, 3, 64, 64\]"):
        predictor.probabilities([pixels])


def test_one_image_has_one_answer_however_it_is_given(
    predictor: Predictor, photo: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(photo))
    answers = list(predictor.predict([path, str(path), path.read_bytes(), photo], batch_size=1))
    assert [a.pop("uri") for a in answers] == [str(path), str(path), "input:2", "input:3"]
    assert all(answer == answers[0] for answer in answers)
    probs = predictor.probabilities([eval_pixels_of(path, predictor.manifest.input)[None]])[0]
    assert answers[0]["label"] == predictor.manifest.task.labels[int(probs.argmax())]
    assert sorted(answers[0]["probabilities"].values()) == sorted(map(float, probs))


def test_what_cannot_be_decoded_has_an_error_and_does_not_stop_the_others(
    predictor: Predictor, photo: Image.Image, tmp_path: Path
) -> None:
    good = png(photo)
    (tmp_path / "note.txt").write_text("no image")
    inputs = [
        b"",
        good,
        good[: len(good) // 2],
        b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
        tmp_path / "absent.jpg",
        str(tmp_path / "note.txt"),
        tmp_path,
        "nul\0byte",
        good,
    ]
    answers = list(predictor.predict(inputs, batch_size=4))
    assert len(answers) == len(inputs)
    assert [i for i, answer in enumerate(answers) if "label" in answer] == [1, 8]
    for i in (0, 2, 3, 4, 5, 6, 7):
        assert set(answers[i]) == {"uri", "error"}
        assert isinstance(answers[i]["error"], str)
        assert answers[i]["error"]
    assert answers[4] == {"uri": str(tmp_path / "absent.jpg"), "error": "No such file or directory"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_an_image_in_memory_of_any_mode_is_answered(
    predictor: Predictor, photo: Image.Image, mode: str
) -> None:
    if mode == "I;16":
        image = Image.fromarray((np.asarray(photo.convert("L")).astype(np.uint16)) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.float32) / 255)
    else:
        image = photo.convert(mode)
    (answer,) = predictor.predict([image])
    assert "error" not in answer, answer


def test_an_image_in_memory_is_turned_upright_as_its_file_would_be(
    predictor: Predictor, photo: Image.Image
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = png(photo, exif=exif)
    from_file, in_memory = predictor.predict([encoded, Image.open(io.BytesIO(encoded))])
    assert from_file["probabilities"] == in_memory["probabilities"]


def test_answers_come_in_order_and_only_as_they_are_asked_for(
    predictor: Predictor, photo: Image.Image, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in paths[:2]:
        path.write_bytes(png(photo))
    answers = predictor.predict(paths, batch_size=2)
    assert next(answers)["uri"] == str(paths[0])
    for path in paths[2:]:
        path.write_bytes(png(photo))
    assert [a["uri"] for a in answers] == [str(path) for path in paths[1:]]


def test_nothing_in_gives_nothing_out(predictor: Predictor) -> None:
    assert list(predictor.predict([])) == []


def test_top_limits_the_probabilities(predictor: Predictor, photo: Image.Image) -> None:
    (answer,) = predictor.predict([photo], top=1)
    assert list(answer["probabilities"]) == [answer["label"]]


@pytest.mark.parametrize("wrong", [{"top": 0}, {"batch_size": 0}])
def test_impossible_numbers_are_refused_at_the_call(
    predictor: Predictor, wrong: dict[str, int]
) -> None:
    with pytest.raises(SpecError, match="is not at least 1"):
        predictor.predict([], **wrong)


def test_an_input_of_another_type_is_the_callers_mistake(predictor: Predictor) -> None:
    with pytest.raises(TypeError, match="ndarray is no input"):
        list(predictor.predict([np.zeros(3)]))  # type: ignore[list-item]


def test_temperature_sharpens_or_softens_and_keeps_the_order(
    experiment: Experiment, record: Record, bundle: Bundle, photo: Image.Image, tmp_path: Path
) -> None:
    soft = written(tmp_path / "soft", experiment, record, temperature=2.0)
    pixels = eval_pixels_of(png(photo), bundle.input)[None]
    hot = np.log(load_predictor(soft).probabilities([pixels]).astype(np.float64))
    cold = np.log(load_predictor(bundle).probabilities([pixels]).astype(np.float64))
    np.testing.assert_allclose(np.diff(hot), np.diff(cold) / 2, rtol=1e-4)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_a_multi_label_bundle_answers_at_its_threshold(
    experiment: Experiment, record: Record, photo: Image.Image, tmp_path: Path, threshold: float
) -> None:
    task = TaskSpec(kind="image-multilabel-classification", labels=experiment.task.labels)
    several = experiment.model_copy(update={"task": task})
    bundle = written(tmp_path / "several", several, record, threshold=threshold)
    assert bundle.scores.validation.intervals == {}
    (answer,) = load_predictor(bundle).predict([photo])
    probs = answer["probabilities"]
    assert answer["labels"] == [label for label, p in probs.items() if p >= threshold]


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(bundle: Bundle, device: str) -> None:
    with pytest.raises(SpecError, match="device"):
        load_predictor(bundle, device=device)


def test_threads_are_those_asked_for(bundle: Bundle) -> None:
    try:
        load_predictor(bundle, runtime="torch", threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


class Payload:
    """Touches the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def hostile_weights(canary: Path) -> dict[str, bytes]:
    zipped, array = io.BytesIO(), io.BytesIO()
    torch.save({"state": Payload(canary)}, zipped)
    np.save(array, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    return {
        "pickle": pickle.dumps(Payload(canary)),
        "torch zip": zipped.getvalue(),
        "object array": array.getvalue(),
        "no safetensors": b"w" * 1000,
        "empty": b"",
        "endless header": b"\xff" * 8 + b"{}",
        "header of no JSON": _safetensors(b"{]"),
        "tensor beyond the end": _safetensors(_header("F32", [4], [0, 1 << 40])),
        "overlap": _safetensors(_header("F32", [1 << 62], [0, 4]), b"\0" * 4),
        "unknown type": _safetensors(_header("F8_E8M0", [4], [0, 4]), b"\0" * 4),
        "wrong tensors": _safetensors(_header("F32", [1], [0, 4]), b"\0" * 4),
        "none": _safetensors(b"{}"),
    }


def _header(dtype: str, shape: list[int], offsets: list[int]) -> bytes:
    return json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


def _safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize("kind", list(hostile_weights(Path())))
def test_hostile_weights_are_refused_and_nothing_in_them_runs(
    write_plain, tmp_path: Path, kind: str
) -> None:
    """Their digest is right: whoever wrote the bundle wrote these bytes."""
    canary = tmp_path / "canary"
    bundle = write_plain(tmp_path / "hostile", weights=hostile_weights(canary)[kind])
    with pytest.raises(BundleError, match=r"model\.safetensors does not fit"):
        load_predictor(bundle)
    assert not canary.exists()
