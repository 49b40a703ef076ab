"""A text bundle answers alike under both runtimes, whatever the lengths and windows."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.predictor import NetworkPredictor, Outputs, Predictor, load_predictor
from orchestrator.data.inputs import Prepared
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import Runtime
from orchestrator.spec.record import Record
from orchestrator.spec.strategy import FeatureExtraction
from tests.orchestrator.bundle.small_bundles import answered_in_a_new_process, text_bundle

TEXTS = ["a cat", "the dog and the horse " * 9, "one two three four five six seven", ""]


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, experiment: Experiment, record: Record
) -> Bundle:
    folder = tmp_path_factory.mktemp("texts") / "bundle"
    strategy = FeatureExtraction(seed=7, pooling="mean", views=4, predict_views=4)
    return text_bundle(folder, experiment, record, strategy=strategy)


@pytest.fixture(scope="module", params=["torch", "onnx"])
def predictor(bundle: Bundle, request: pytest.FixtureRequest) -> Predictor:
    return load_predictor(bundle, runtime=request.param)


def test_a_text_has_one_answer_whatever_its_batch(predictor: Predictor) -> None:
    together = list(predictor.predict(TEXTS))
    alone = [next(predictor.predict([text])) for text in TEXTS]
    assert [a.get("label") for a in together] == [a.get("label") for a in alone]
    assert "error" in together[3]
    for one, other in zip(together[:3], alone[:3], strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_logits_and_embeddings_are_means_over_the_windows(predictor: Predictor) -> None:
    preparer = predictor.preparer
    views = preparer.batch([preparer.read(text) for text in TEXTS[:3]])
    assert len(views) == 4
    whole, each = predictor.outputs(views), [predictor.outputs([view]) for view in views]
    assert np.ptp([one.logits[1] for one in each], axis=0).max() > 1e-2  # its windows differ
    np.testing.assert_allclose(whole.logits, np.mean([one.logits for one in each], 0), atol=1e-5)
    np.testing.assert_allclose(
        whole.features, np.mean([one.features for one in each], 0), atol=1e-5
    )
    assert predictor.embeddings(views).shape == (3, 32)


def test_both_runtimes_answer_alike(bundle: Bundle) -> None:
    onnx, torch_ = (load_predictor(bundle, runtime=name) for name in ("onnx", "torch"))
    views = onnx.preparer.batch([onnx.preparer.read(text) for text in TEXTS[:3]])
    found, expected = onnx.outputs(views), torch_.outputs(views)
    assert np.ptp(expected.logits, axis=0).max() > 1e-2
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(found.features, expected.features, atol=1e-4)


def test_answering_imports_no_torch(bundle: Bundle) -> None:
    answer, imported = answered_in_a_new_process(bundle, "a cat")
    assert answer["label"] in bundle.labels
    assert imported == []


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_many_texts_go_through_the_network_a_few_at_a_time_with_the_same_outputs(
    bundle: Bundle, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    by = load_predictor(bundle, runtime=runtime, threads=1)
    assert isinstance(by, NetworkPredictor)
    rows = by.preparer.batch([by.preparer.read(TEXTS[n % 3]) for n in range(70)])[0]
    whole, run = by.run(rows), by.run
    sizes: list[int] = []

    def counted(prepared: Prepared) -> Outputs:
        sizes.append(len(prepared))
        return run(prepared)

    monkeypatch.setattr(by, "run", counted)
    parts = by.outputs([rows])
    assert sizes == [32, 32, 6]
    np.testing.assert_allclose(parts.logits, whole.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(parts.features, whole.features, rtol=1e-5, atol=1e-5)
