"""Computing the rows of a FeatureStore entry: one forward pass an image, frozen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.data.batches import iterate_pixels
from orchestrator.data.examples import Examples
from orchestrator.data.transforms import dihedral, normalized, transform_digest
from orchestrator.features.store import FeatureKey, Float32, batched
from orchestrator.models.backbone import Backbone
from orchestrator.models.placing import placed
from orchestrator.spec.parts import BackboneSpec, InputContract
from orchestrator.spec.strategy import Pooling

BATCH_SIZE = 32


def feature_key(
    spec: BackboneSpec,
    weights_digest: str,
    contract: InputContract,
    data_digest: str,
    *,
    pooling: Pooling,
    view: int = 0,
) -> FeatureKey:
    """The key of a backbone's pooled features of one view."""
    return FeatureKey(
        backbone=spec.name,
        weights=weights_digest,
        cut=pooling,
        transform=transform_digest(contract),
        data=data_digest,
        view=view,
    )


def search_rows(examples: Examples) -> npt.NDArray[np.int64]:
    """The examples that a search reads, in order: training and validation, never test."""
    return np.sort(np.concatenate([examples.indices("train"), examples.indices("validation")]))


def compute_features(
    backbone: Backbone,
    examples: Examples,
    rows: npt.NDArray[np.int64],
    *,
    contract: InputContract,
    pooling: Pooling,
    view: int = 0,
    device: torch.device,
    threads: int,
    on_images: Callable[[int], None] | None = None,
) -> Float32:
    """Pooled features of some examples under the evaluation transform and one view of it.

    Args:
        backbone: Put into eval mode and left there.
        examples: The whole data set.
        rows: Which examples, int64 [n].
        contract: How images are prepared.
        pooling: Which features.
        view: Which of the deterministic views; 0 is the image itself.
        device: Where the forward pass runs.
        threads: Decoding threads.
        on_images: Called with the number of images done since the last call.

    Returns:
        float32 [n, D].
    """
    placed(backbone.eval(), device)
    found: list[Float32] = []
    batches = iterate_pixels(
        examples,
        batched(rows, BATCH_SIZE),
        contract=contract,
        augment="none",
        seed=0,
        epoch=0,
        threads=threads,
    )
    for _, pixels in batches:
        images = torch.from_numpy(normalized(dihedral(pixels, view), contract)).to(
            device, memory_format=torch.channels_last
        )
        with torch.inference_mode():
            found.append(backbone.features(images, pooling=pooling).cpu().numpy())
        if on_images is not None:
            on_images(len(pixels))
    return np.concatenate(found)
