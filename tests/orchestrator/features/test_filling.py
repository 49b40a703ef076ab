"""Stored features are the library's own, of the prepared image, view by view."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.data.examples import Example, Examples
from orchestrator.features.filling import BATCH_SIZE, compute_features, feature_key, search_rows
from orchestrator.models.backbone import Backbone
from orchestrator.models.building import build_backbone
from orchestrator.spec.parts import BackboneSpec, InputContract

SPEC = BackboneSpec(name="mobilenetv3_small_050", weights="none")
CONTRACT = InputContract(size=32, crop_fraction=1.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
N = BATCH_SIZE + 3


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    root = tmp_path_factory.mktemp("filling")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(N):
        path = root / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
        split = ("train", "validation", "test")[i % 3]
        rows.append(
            Example(uri=str(path), content=f"{i:064x}", split=split, labels=("ab"[i % 2],))  # type: ignore[arg-type]
        )
    return Examples.write(root / "index", rows, labels=["a", "b"], multilabel=False)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(SPEC, size=32)


@pytest.mark.parametrize("view", [0, 3, 7])
def test_features_are_the_backbones_of_each_prepared_view(
    examples: Examples, backbone: Backbone, view: int
) -> None:
    rows = np.arange(len(examples), dtype=np.int64)[::-1].copy()
    done: list[int] = []
    found = compute_features(
        copy.deepcopy(backbone).train(),
        examples,
        rows,
        contract=CONTRACT,
        pooling="last",
        view=view,
        device=torch.device("cpu"),
        threads=2,
        on_images=done.append,
    )
    assert found.dtype == np.float32
    assert sum(done) == len(rows)
    mean, std = np.array(CONTRACT.mean), np.array(CONTRACT.std)
    for position in (0, 1, BATCH_SIZE, len(rows) - 1):
        pixels = np.asarray(Image.open(examples.uri(int(rows[position]))), np.float64) / 255
        pixels = pixels.transpose(1, 0, 2) if view & 4 else pixels
        pixels = pixels[::-1] if view & 2 else pixels
        pixels = pixels[:, ::-1] if view & 1 else pixels
        image = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1).copy()).float()
        with torch.inference_mode():
            expected = backbone(image[None])[0].numpy()
        np.testing.assert_allclose(found[position], expected, rtol=1e-3, atol=1e-5)


def test_a_search_reads_training_and_validation_in_order_and_never_test(
    examples: Examples,
) -> None:
    rows = search_rows(examples)
    assert (np.diff(rows) > 0).all()
    assert set(rows) == set(range(len(examples))) - set(examples.indices("test"))


def test_the_key_names_all_that_decides_the_values() -> None:
    def key(**change: object) -> str:
        given = {"spec": SPEC, "contract": CONTRACT, "data": "d", "weights": "w", "view": 0}
        given |= {"output": "last", "precision": "fp16"} | change
        return feature_key(
            given["spec"],  # type: ignore[arg-type]
            given["weights"],  # type: ignore[arg-type]
            given["contract"],  # type: ignore[arg-type]
            given["data"],  # type: ignore[arg-type]
            output=given["output"],  # type: ignore[arg-type]
            view=given["view"],  # type: ignore[arg-type]
            precision=given["precision"],  # type: ignore[arg-type]
        ).digest

    changes: list[dict[str, object]] = [
        {},
        {"spec": BackboneSpec(name="resnet18")},
        {"weights": "x"},
        {"contract": CONTRACT.model_copy(update={"size": 64})},
        {"data": "x"},
        {"output": "multi-scale"},
        {"output": 2},
        {"output": 2, "precision": "fp32"},
        {"view": 1},
    ]
    digests = [key(**change) for change in changes]
    assert len(set(digests)) == len(digests)
    # Pooled features are stored in fp32 whatever is asked for activations.
    assert key(precision="fp32") == digests[0]
    # Where the weights file lies decides nothing: its digest does.
    assert key(spec=BackboneSpec(name=SPEC.name, weights="/elsewhere")) == digests[0]
