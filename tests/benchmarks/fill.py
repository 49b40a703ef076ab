"""P7: filling the feature store against a bare eager loop of forward passes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from orchestrator.data.batches import iterate_pixels
from orchestrator.data.examples import Examples
from orchestrator.data.transforms import normalized
from orchestrator.features.filling import search_rows
from orchestrator.features.store import FeatureStore, batched
from orchestrator.models.building import build_backbone
from orchestrator.models.placing import placed
from orchestrator.models.weights import tensors_digest
from orchestrator.runtime.cluster import joined_cluster
from orchestrator.runtime.feature_filling import FeatureNeed, Pass, fill_features
from orchestrator.spec.backbone_table import facts_for
from orchestrator.spec.parts import BackboneSpec
from tests.benchmarks.harness import Measured, paired
from tests.benchmarks.material import write_photos

BACKBONE = "tf_efficientnet_lite0"
N_IMAGES, CPUS = 1024, 2


def p7(folder: Path) -> list[Measured]:
    """The time to fill the store on two CPUs as a multiple of a bare loop's with two threads."""
    with joined_cluster(cpus=CPUS):
        return [
            _filled(folder / "onnx", "with ONNX Runtime", "≤ 0.5×", onnx=True),
            _filled(folder / "torch", "with torch alone", "≤ 1.15×", onnx=False),
        ]


def _filled(folder: Path, how: str, goal: str, *, onnx: bool) -> Measured:
    torch.set_num_threads(CPUS)
    examples = write_photos(folder / "data", n=N_IMAGES, side=256)
    spec = BackboneSpec(name=BACKBONE, weights="none")
    contract = facts_for(BACKBONE).input
    backbone = placed(build_backbone(spec).eval(), torch.device("cpu"))
    store = FeatureStore(folder / "features")
    need = FeatureNeed(Pass(spec, tensors_digest(backbone), contract, view=0), "last")
    rows = search_rows(examples)
    bare: list[np.ndarray] = []

    def fill() -> None:
        shutil.rmtree(store.root, ignore_errors=True)
        fill_features(
            [need],
            data=folder / "data" / "index",
            store=store,
            cpus=1,
            gpus=0,
            progress=lambda *_: None,
            onnx=onnx,
        )

    def loop() -> None:
        bare.clear()
        for _, pixels in iterate_pixels(
            examples,
            batched(rows, 32),
            contract=contract,
            augment="none",
            seed=0,
            epoch=0,
            threads=CPUS,
        ):
            images = torch.from_numpy(normalized(pixels, contract))
            with torch.inference_mode():
                features = backbone.features(
                    images.to(memory_format=torch.channels_last), pooling="last"
                )
            bare.append(features.numpy())

    ratio, ours, theirs = paired(fill, loop, pairs=3)
    found = store.find(need.key(Examples.open(folder / "data" / "index")))
    assert found is not None
    difference = np.abs(found.take(np.arange(len(rows))) - np.concatenate(bare)).max()
    return Measured(
        id="P7",
        what=f"filling the feature store {how} against a bare forward loop",
        value=ratio,
        goal=goal,
        beside={
            "seconds_to_fill": ours,
            "seconds_of_the_bare_loop": theirs,
            "largest_difference": float(difference),
        },
    )
