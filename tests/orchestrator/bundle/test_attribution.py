"""Attribution finds what the answer was made from, and nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from orchestrator.bundle.attribution import CELLS, Erasure, Occlusion, explain
from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.predictor import NetworkPredictor, Outputs, load_predictor
from orchestrator.bundle.preparing import preparer_of
from orchestrator.data.inputs import Prepared
from orchestrator.data.tokens import TokenRows
from orchestrator.errors import DataError, SpecError
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.record import Record
from tests.orchestrator.bundle.small_bundles import image_bundle, text_bundle


class Rule(NetworkPredictor):
    """Its second label has a known logit; those of the others are 0."""

    def __init__(self, bundle: Bundle, rule: Callable[[Prepared], np.ndarray]) -> None:
        super().__init__(bundle.manifest, preparer_of(bundle), n_features=1)
        self._rule = rule
        self.batches: list[int] = []

    def run(self, prepared: Prepared) -> Outputs:
        self.batches.append(len(prepared))
        logits = np.zeros((len(prepared), 3), np.float32)
        logits[:, 1] = self._rule(prepared)
        return Outputs(logits, logits[:, :1])


@pytest.fixture(scope="module")
def images(
    tmp_path_factory: pytest.TempPathFactory, experiment: Experiment, record: Record
) -> Bundle:
    return image_bundle(tmp_path_factory.mktemp("images") / "bundle", experiment, record)


@pytest.fixture(scope="module")
def texts(
    tmp_path_factory: pytest.TempPathFactory, experiment: Experiment, record: Record
) -> Bundle:
    return text_bundle(tmp_path_factory.mktemp("texts") / "bundle", experiment, record)


@pytest.fixture(scope="module")
def photo() -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(1).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def in_row_2_column_3(pixels: Prepared) -> np.ndarray:
    """Cell (2, 3) of 7 x 7 in 64 pixels reaches from (18, 27) to (26, 36)."""
    assert isinstance(pixels, np.ndarray)
    return pixels[:, 0, 18:27, 27:37].std(axis=(1, 2)) / 10


def test_only_the_cell_that_the_answer_comes_from_makes_the_label_less_likely(
    images: Bundle, photo: bytes
) -> None:
    predictor = Rule(images, in_row_2_column_3)
    found = explain(predictor, photo)
    assert isinstance(found, Occlusion)
    assert found.label == images.labels[1]
    read = predictor.preparer.read(photo)
    before = predictor.probabilities([read[None]])[0, 1]
    assert found.falls[2, 3] == pytest.approx(before - 1 / 3, abs=1e-6)  # one colour: no deviation
    others = np.delete(found.falls.ravel(), 2 * CELLS + 3)
    np.testing.assert_array_equal(others, 0)


def test_cells_are_asked_together(images: Bundle, photo: bytes) -> None:
    predictor = Rule(images, in_row_2_column_3)
    explain(predictor, photo, batch_size=20)
    assert predictor.batches == [20, 20, 10]


def test_another_label_gains_what_the_likeliest_loses(images: Bundle, photo: bytes) -> None:
    predictor = Rule(images, in_row_2_column_3)
    falls = [explain(predictor, photo, label=label) for label in images.labels]
    maps = [one.falls for one in falls if isinstance(one, Occlusion)]
    assert maps[0][2, 3] < 0 < maps[1][2, 3]
    np.testing.assert_allclose(sum(maps), 0, atol=1e-6)


def test_a_real_models_map_is_the_same_under_both_runtimes(images: Bundle, photo: bytes) -> None:
    maps = []
    for runtime in ("onnx", "torch"):
        found = explain(load_predictor(images, runtime=runtime), photo)  # type: ignore[arg-type]
        assert isinstance(found, Occlusion)
        maps.append(found.falls)
    assert np.abs(maps[0]).max() > 1e-4
    np.testing.assert_allclose(*maps, atol=1e-5)
    document = found.to_json()
    assert document["map"]["rows"] == document["map"]["cols"] == CELLS
    assert document["map"]["values"][1][2] == pytest.approx(float(maps[1][1, 2]))


def cats(token: int) -> Callable[[Prepared], np.ndarray]:
    def rule(rows: Prepared) -> np.ndarray:
        assert isinstance(rows, TokenRows)
        return 2.0 * (rows.ids == token).sum(axis=1)

    return rule


def test_only_the_word_that_the_answer_comes_from_counts(texts: Bundle) -> None:
    preparer = preparer_of(texts)
    (cat,) = preparer.read("cat")
    text = "The dog, a Cat  and the horse."
    found = explain(Rule(texts, cats(cat)), text)
    assert isinstance(found, Erasure)
    assert found.label == texts.labels[1]
    words = {text[w.start : w.end]: w.fall for w in found.words}
    assert list(words) == ["The", "dog", "a", "Cat", "and", "the", "horse"]
    expected = softmax(np.array([0.0, 2.0, 0.0]))[1] - 1 / 3
    assert words.pop("Cat") == pytest.approx(expected, abs=1e-6)
    assert set(words.values()) == {0.0}
    assert found.to_json()["spans"][3] == {
        "start": 11,
        "end": 14,
        "score": pytest.approx(expected, abs=1e-6),
    }


def test_a_single_word_is_compared_with_nothing_at_all(texts: Bundle) -> None:
    (cat,) = preparer_of(texts).read("cat")
    found = explain(Rule(texts, cats(cat)), "cat")
    assert isinstance(found, Erasure)
    assert len(found.words) == 1
    assert found.words[0].fall > 0.3


def test_a_long_text_costs_no_more_than_what_the_model_sees_of_it(texts: Bundle) -> None:
    (cat,) = preparer_of(texts).read("cat")
    predictor = Rule(texts, cats(cat))
    beginning = "dog " * 10 + "cat "
    found = explain(predictor, beginning + "dog cat " * 10_000)
    assert isinstance(found, Erasure)
    assert texts.input.size <= len(found.words) <= 2 * texts.input.size
    assert sum(predictor.batches) == len(found.words) + 1
    short = explain(predictor, beginning + "dog cat " * 20)
    assert isinstance(short, Erasure)
    assert short.words[: texts.input.size] == found.words[: texts.input.size]


def test_an_unknown_label_is_named_with_its_nearest(images: Bundle, photo: bytes) -> None:
    with pytest.raises(
        SpecError, match=r"'craked' is none of this model's\. Did you mean 'cracked'"
    ):
        explain(Rule(images, in_row_2_column_3), photo, label="craked")


def test_what_cannot_be_decoded_cannot_be_explained(images: Bundle, texts: Bundle) -> None:
    with pytest.raises(DataError):
        explain(Rule(images, in_row_2_column_3), b"no image")
    with pytest.raises(DataError):
        explain(Rule(texts, cats(7)), "   ")
