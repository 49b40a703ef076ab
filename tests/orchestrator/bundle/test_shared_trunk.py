"""Bundles of one trunk answer together as each does alone, and cost only what is their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.manifest import render, sealed
from orchestrator.bundle.onnx_predictor import OnnxPredictor
from orchestrator.bundle.predictor import Predictor, load_predictor, load_predictors
from orchestrator.bundle.shared_trunk import SharedTrunk, TrunkPredictor
from orchestrator.errors import BundleError, SpecError
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import TaskSpec
from orchestrator.spec.record import Record
from orchestrator.spec.strategy import FeatureExtraction, Full, Partial, StrategyParams
from tests.orchestrator.bundle.small_bundles import HEAVY, image_bundle, text_bundle

RNG = np.random.default_rng(0)
MODEL_BYTES = 4_000_000  # of mobilenetv3_small_100 at least


STRATEGIES: dict[str, StrategyParams] = {
    "heads": FeatureExtraction(seed=7),
    "heads over views": FeatureExtraction(seed=7, predict_views=2, head="mlp"),
    "stages": Partial(seed=7, unfreeze=1),
    "stages, all of them pooled": Partial(seed=7, unfreeze=2, pooling="multi-scale"),
    "stages over views": Partial(seed=7, unfreeze=1, predict_views=2, pooling="multi-scale"),
}


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory, experiment: Experiment, record: Record
) -> Callable[..., Bundle]:
    """Bundles by strategy, seed and labels, each written once."""
    root, made = tmp_path_factory.mktemp("bundles"), dict[str, Bundle]()

    def call(kind: str, seed: int, *, labels: tuple[str, ...] = ("a", "b", "c")) -> Bundle:
        name = f"{kind} {seed} {len(labels)}"
        if name not in made:
            strategy = STRATEGIES.get(kind) or Full(seed=7)
            task = TaskSpec(kind="image-classification", labels=labels)
            of_kind = experiment.model_copy(update={"strategy": strategy, "task": task})
            made[name] = image_bundle(root / name, of_kind, record, seed=seed)
        return made[name]

    return call


def pixels(n: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, 3, 64, 64), np.uint8)


def assert_as_alone(found: Any, predictor: Predictor, views: Any) -> None:
    alone = load_predictor(_bundle_of(predictor), runtime="onnx").outputs(views)
    np.testing.assert_allclose(found.logits, alone.logits, atol=2e-5)
    np.testing.assert_allclose(found.features, alone.features, atol=2e-5)


def _bundle_of(predictor: Predictor) -> Bundle:
    assert isinstance(predictor, TrunkPredictor)
    return predictor.bundle


@pytest.mark.parametrize("kind", list(STRATEGIES))
def test_a_mixed_batch_has_the_outputs_of_each_bundle_alone(
    make: Callable[..., Bundle], kind: str
) -> None:
    first, second = make(kind, 5), make(kind, 6)
    trunk = SharedTrunk(first, threads=1)
    one, other = trunk.predictor(first), trunk.predictor(second)
    requests = [(one, [pixels(2)]), (other, [pixels(1)]), (one, [pixels(1)]), (other, [pixels(3)])]
    found = trunk.outputs(requests)
    assert [len(outputs.logits) for outputs in found] == [2, 1, 1, 3]
    for outputs, (predictor, views) in zip(found, requests, strict=True):
        assert_as_alone(outputs, predictor, views)
    same = pixels(1)
    ours, theirs = trunk.outputs([(one, [same]), (other, [same])])
    assert np.abs(ours.logits - theirs.logits).max() > 1e-3  # the bundles differ at all


@pytest.mark.parametrize(
    "strategy",
    [
        FeatureExtraction(seed=7, pooling="mean"),
        Partial(seed=7, unfreeze=1, pooling="mean", views=2, predict_views=2),
        Partial(seed=7, unfreeze=2, pooling="multi-scale"),
    ],
)
def test_texts_of_any_length_go_through_together(
    tmp_path: Path, experiment: Experiment, record: Record, strategy: StrategyParams
) -> None:
    bundles = [
        text_bundle(tmp_path / str(seed), experiment, record, strategy=strategy, seed=seed)
        for seed in (5, 6)
    ]
    trunk = SharedTrunk(bundles[0], threads=1)
    predictors = [trunk.predictor(bundle) for bundle in bundles]
    assert predictors[0].preparer is predictors[1].preparer  # tokenizers are large
    texts = ["a cat", "the dog and the horse " * 9, "one two three four"]
    requests = []
    for predictor in predictors:
        for text in texts:
            read = [predictor.preparer.read(text)]
            requests.append((predictor, predictor.preparer.batch(read)))
    for outputs, (predictor, views) in zip(trunk.outputs(requests), requests, strict=True):
        assert_as_alone(outputs, predictor, views)


def test_heads_for_other_labels_share_a_trunk(make: Callable[..., Bundle]) -> None:
    three, two = make("heads", 5), make("heads", 6, labels=("x", "y"))
    trunk = SharedTrunk(three, threads=1)
    one, other = trunk.predictor(three), trunk.predictor(two)
    same = pixels(2)
    found = trunk.outputs([(one, [same]), (other, [same])])
    assert [outputs.logits.shape for outputs in found] == [(2, 3), (2, 2)]
    assert_as_alone(found[1], other, [same])
    np.testing.assert_array_equal(found[0].features, found[1].features)


def test_a_trunk_predictor_keeps_the_contract_of_predictors(make: Callable[..., Bundle]) -> None:
    bundle = make("heads", 5)
    predictor = SharedTrunk(bundle, threads=1).predictor(bundle)
    images = pixels(4)
    probs = predictor.probabilities([images])
    np.testing.assert_allclose(
        probs, load_predictor(bundle, runtime="torch").probabilities([images]), atol=1e-5
    )
    assert predictor.embeddings([images[:0]]).shape == (0, predictor.embeddings([images]).shape[1])
    with pytest.raises(SpecError, match="is not uint8"):
        predictor.probabilities([images.astype(np.float32)])
    (answer,) = predictor.predict([b"no image"])
    assert "error" in answer


def test_what_was_not_used_for_longest_makes_room_and_comes_back(
    make: Callable[..., Bundle],
) -> None:
    bundles = [make("stages", seed) for seed in (5, 6, 8)]
    unbounded = SharedTrunk(bundles[0], threads=1)
    unbounded.predictor(bundles[0])
    each = unbounded.suffix_bytes
    trunk = SharedTrunk(bundles[0], threads=1, suffix_bytes=int(2.5 * each))
    predictors = [trunk.predictor(bundle) for bundle in bundles]
    assert trunk.suffix_bytes == 2 * each
    requests = [(predictor, [pixels(1)]) for predictor in predictors]
    for outputs, (predictor, views) in zip(trunk.outputs(requests), requests, strict=True):
        assert_as_alone(outputs, predictor, views)
    assert trunk.suffix_bytes == 2 * each
    tight = SharedTrunk(bundles[0], threads=1, suffix_bytes=1)
    for bundle in bundles[1:]:  # each is larger than all that may be kept, and is kept alone
        predictor, images = tight.predictor(bundle), [pixels(1)]
        assert_as_alone(predictor.outputs(images), predictor, images)
        assert tight.suffix_bytes == each


def test_only_bundles_of_one_trunk_are_taken(make: Callable[..., Bundle]) -> None:
    digests = {kind: make(kind, 5).manifest.trunk for kind in STRATEGIES}
    assert all(report is not None for report in digests.values())
    assert len({report.digest for report in digests.values() if report}) == len(STRATEGIES)
    trunk = SharedTrunk(make("heads", 5))
    with pytest.raises(BundleError, match=f"has the trunk .* not {trunk.digest[:12]}"):
        trunk.predictor(make("stages", 5))
    assert make("full", 5).manifest.trunk is None
    with pytest.raises(BundleError, match="has no trunk to share: load it by itself"):
        trunk.predictor(make("full", 5))


def test_loading_several_bundles_shares_what_can_be_shared(make: Callable[..., Bundle]) -> None:
    bundles = [make("heads", 5), make("stages", 5), make("full", 5), make("heads", 6)]
    found = load_predictors(bundles, threads=1)
    assert [predictor.manifest for predictor in found] == [bundle.manifest for bundle in bundles]
    first, alone, whole, last = found
    assert isinstance(first, TrunkPredictor)
    assert isinstance(last, TrunkPredictor)
    assert first.trunk is last.trunk
    assert isinstance(alone, OnnxPredictor)
    assert isinstance(whole, OnnxPredictor)
    by_torch = load_predictors([bundles[0], bundles[3]], runtime="torch", threads=1)
    assert not any(isinstance(predictor, TrunkPredictor) for predictor in by_torch)


def copied(bundle: Bundle, folder: Path, temperature: float) -> Bundle:
    """Another bundle with the same files."""
    folder.mkdir()
    for name in bundle.manifest.files:
        (folder / name).write_bytes(bundle.read(name))
    manifest = sealed({**bundle.manifest.to_json(), "temperature": temperature})
    (folder / "bundle.json").write_bytes(render(manifest.to_json()))
    return open_bundle(folder)


MEASURED = """
import json, sys
from pathlib import Path
import numpy as np
from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.shared_trunk import SharedTrunk

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

folders = sys.argv[1:]
images = np.zeros((2, 3, 64, 64), np.uint8)
trunk = SharedTrunk(open_bundle(folders[0]), threads=1)
predictors, sizes = [], []
for folder in folders:
    predictors.append(trunk.predictor(open_bundle(folder)))
    predictors[-1].outputs([images])
    sizes.append(resident())
print(json.dumps({"sizes": sizes, "suffixes": trunk.suffix_bytes, "imported": sorted(sys.modules)}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_further_bundle_costs_a_head_and_not_a_model(
    make: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle, n = make("heads", 5), 24
    folders = [copied(bundle, tmp_path / f"{i}", 1 + i / 100).path for i in range(n)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, folders)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert bundle.manifest.files["model.onnx"].bytes > MODEL_BYTES
    assert found["suffixes"] / n < MODEL_BYTES / 100
    grown = (found["sizes"][-1] - found["sizes"][3]) / (n - 4)
    assert grown < MODEL_BYTES / 8, f"{grown:,.0f} bytes a bundle"
    assert not set(HEAVY) & set(found["imported"])
