"""A CLIP as a bundle: its own labels, any other labels, and what a repeated set costs."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.clip_bundles import OWN_LABELS, cached_clip_bundle, write_clip_bundle
from orchestrator.bundle.predictor import load_predictor, load_predictors
from orchestrator.bundle.shared_trunk import TrunkPredictor
from orchestrator.bundle.zero_shot import (
    TextTower,
    ZeroShotPredictor,
    is_open,
    load_zero_shot_predictor,
    tower_digest,
)
from orchestrator.errors import BundleError, SpecError
from orchestrator.models.clip import load_clip
from orchestrator.spec.clip_models import parse_clip
from orchestrator.spec.parts import BackboneSpec, Runtime
from orchestrator.spec.prompts import LabelSet
from tests.orchestrator.clip_material import HELD_OUT, SEEN, label_of, write_shapes

LABELS = LabelSet(labels=tuple(label_of(pair) for pair in SEEN[::4]), templates="plain")
OTHERS = LabelSet(labels=tuple(label_of(pair) for pair in sorted(HELD_OUT)))


@pytest.fixture(scope="module")
def spec(clip_folder: Path) -> BackboneSpec:
    return parse_clip(str(clip_folder), base=Path("/"))


@pytest.fixture(scope="module")
def bundle(spec: BackboneSpec, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_clip_bundle(tmp_path_factory.mktemp("clip") / "bundle", spec, LABELS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = write_shapes(
        tmp_path_factory.mktemp("shapes"), (*SEEN[::4], *sorted(HELD_OUT)), 2, seed=8
    )
    return sorted(root.rglob("*.png"))


def reference(clip_folder: Path, pictures: list[Path], labels: LabelSet) -> Any:
    """Probabilities by open_clip's own model, preprocessing, tokenizer and builder."""
    name = f"local-dir:{clip_folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    names = [label.replace("_", " ") for label in labels.labels]
    templates = [prompt.replace(names[0], "{}") for prompt in labels.prompts()[labels.labels[0]]]
    weights = open_clip.build_zero_shot_classifier(
        model.eval(), open_clip.get_tokenizer(name), names, templates
    )
    images = torch.stack([preprocess(Image.open(path)) for path in pictures])
    with torch.no_grad():
        cosines = model.encode_image(images, normalize=True) @ weights
        return (model.logit_scale.exp() * cosines).softmax(1).numpy()


def probabilities(predictor: Any, paths: list[Path]) -> Any:
    preparer = predictor.preparer
    return predictor.probabilities(preparer.batch([preparer.read(path) for path in paths]))


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_bundle_answers_for_its_labels_and_for_others_as_open_clip_does(
    bundle: Bundle, clip_folder: Path, pictures: list[Path], runtime: Runtime
) -> None:
    predictor = load_zero_shot_predictor(bundle, runtime=runtime)
    own = probabilities(predictor.own, pictures)
    np.testing.assert_allclose(own, reference(clip_folder, pictures, LABELS), atol=1e-4)
    others = probabilities(predictor.labelled(OTHERS), pictures)
    np.testing.assert_allclose(others, reference(clip_folder, pictures, OTHERS), atol=1e-4)


def test_answers_under_other_labels_name_them(bundle: Bundle, pictures: list[Path]) -> None:
    held_out = [path for path in pictures if path.parent.name in OTHERS.labels]
    answers = list(load_zero_shot_predictor(bundle).labelled(OTHERS).predict(held_out, top=2))
    assert [answer["label"] for answer in answers] == [path.parent.name for path in held_out]
    assert all(set(answer["probabilities"]) <= set(OTHERS.labels) for answer in answers)


class Counted(TextTower):
    """Counts how often it reads."""

    n_read = 0

    def _made(self, key: str, prompts: dict[str, tuple[str, ...]]) -> Any:
        self.n_read += 1
        return super()._made(key, prompts)


def test_a_repeated_label_set_is_read_once_whoever_asks(bundle: Bundle) -> None:
    texts = Counted(bundle)
    predictor = ZeroShotPredictor(load_predictor(bundle), texts)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: predictor.labelled(OTHERS), range(16)))
    assert texts.n_read == 1
    assert all(one.manifest.task.labels == OTHERS.labels for one in found)
    renamed = OTHERS.model_copy(
        update={
            "labels": tuple(f"class {i}" for i in range(len(OTHERS.labels))),
            "descriptions": {
                f"class {i}": (label.replace("_", " "),) for i, label in enumerate(OTHERS.labels)
            },
        }
    )
    predictor.labelled(renamed)
    assert texts.n_read == 1  # other names for the same prompts
    predictor.labelled(OTHERS.model_copy(update={"templates": "plain"}))
    assert texts.n_read == 2


def test_label_sets_are_bounded_by_bytes_and_the_newest_stays(bundle: Bundle) -> None:
    width = 32 * 4  # bytes of a label
    texts = Counted(bundle, cache_bytes=5 * width)
    predictor = ZeroShotPredictor(load_predictor(bundle), texts)
    first, second = (LabelSet(labels=pair) for pair in (("red", "green"), ("ring", "bar")))
    for labels in (first, second, first):
        predictor.labelled(labels)
    assert texts.n_read == 2
    predictor.labelled(LabelSet(labels=("blue", "white")))  # the second goes
    assert texts.kept_bytes == 4 * width
    predictor.labelled(first)
    assert texts.n_read == 3
    predictor.labelled(LabelSet(labels=tuple(label_of(pair) for pair in SEEN)))
    assert texts.kept_bytes == len(SEEN) * width


def test_one_label_alone_and_prompts_that_are_too_long_are_refused(bundle: Bundle) -> None:
    predictor = load_zero_shot_predictor(bundle)
    with pytest.raises(SpecError, match="alone is always right"):
        predictor.labelled(LabelSet(labels=("red",)))
    with pytest.raises(SpecError, match="has 25 tokens; clip:coloured-shapes reads 16"):
        predictor.labelled(LabelSet(labels=("red " * 18, "ring"), templates="plain"))


def test_a_bundle_of_no_clip_is_refused_other_labels(
    bundle: Bundle, tmp_path: Path, spec: BackboneSpec
) -> None:
    closed = Bundle(
        bundle.path,
        bundle.manifest.model_copy(
            update={
                "files": {k: v for k, v in bundle.manifest.files.items() if k != "text.safetensors"}
            }
        ),
    )
    assert not is_open(closed)
    with pytest.raises(BundleError, match="no text tower"):
        TextTower(closed)


def test_a_bundle_tells_where_it_comes_from_and_needs_the_model_no_more(
    bundle: Bundle, spec: BackboneSpec
) -> None:
    opened = open_bundle(bundle.path)
    assert opened.task.kind == "zero-shot-image-classification"
    assert opened.experiment().weights_digest == load_clip(spec).digest
    assert opened.manifest.backbone == BackboneSpec(name=spec.name, weights="none")
    assert opened.manifest.scores.validation.metrics == {}
    assert "zero-shot" in opened.read("MODEL_CARD.md").decode()


def test_a_clips_bundle_is_written_once_and_found_again(spec: BackboneSpec, tmp_path: Path) -> None:
    first = cached_clip_bundle(tmp_path, spec)
    written = (first.path / "bundle.json").stat().st_mtime_ns
    again = cached_clip_bundle(tmp_path, spec)
    assert (again.path / "bundle.json").stat().st_mtime_ns == written
    assert again.labels == OWN_LABELS.labels
    assert cached_clip_bundle(tmp_path, spec, LABELS).labels == LABELS.labels


def test_answering_for_its_own_labels_imports_no_torch(
    bundle: Bundle, pictures: list[Path]
) -> None:
    code = (
        "import sys\n"
        "from orchestrator.bundle.bundle import open_bundle\n"
        "from orchestrator.bundle.zero_shot import load_zero_shot_predictor\n"
        f"predictor = load_zero_shot_predictor(open_bundle({str(bundle.path)!r}))\n"
        f"print(list(predictor.own.predict([{str(pictures[0])!r}])))\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "probabilities" in done.stdout


def test_bundles_of_one_clip_share_its_image_encoder(
    spec: BackboneSpec, bundle: Bundle, pictures: list[Path], tmp_path: Path
) -> None:
    other = write_clip_bundle(tmp_path / "other", spec, OTHERS)
    both = load_predictors([bundle, other], threads=1)
    assert isinstance(both[0], TrunkPredictor)
    assert isinstance(both[1], TrunkPredictor)
    assert both[0].trunk is both[1].trunk
    assert tower_digest(bundle) == tower_digest(other)
    texts = TextTower(bundle)
    for one, shared in zip((bundle, other), both, strict=True):
        alone = probabilities(load_predictor(one, threads=1), pictures)
        np.testing.assert_allclose(probabilities(shared, pictures), alone, atol=1e-5)
        others = ZeroShotPredictor(shared, texts).labelled(OTHERS)
        np.testing.assert_allclose(
            probabilities(others, pictures), probabilities(both[1], pictures), atol=1e-5
        )
