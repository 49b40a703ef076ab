"""Computing the rows of FeatureStore entries: one forward pass an image and view, frozen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.data.examples import Examples, Split
from orchestrator.data.inputs import iterate_inputs
from orchestrator.data.transforms import transform_digest
from orchestrator.features.network_inputs import network_inputs
from orchestrator.features.onnx_outputs import export, known_export
from orchestrator.features.store import FeatureKey, Float32, Values, batched
from orchestrator.models.backbone import Backbone, Output
from orchestrator.models.placing import placed
from orchestrator.spec.parts import BackboneSpec, Contract, InputContract
from orchestrator.spec.strategy import Augment, Pooling, StoredPrecision

BATCH_SIZE = 32
EXPORT_PAYS_S = 10.0


def feature_key(
    spec: BackboneSpec,
    weights_digest: str,
    contract: Contract,
    data_digest: str,
    *,
    output: Output,
    view: int = 0,
    augment: Augment = "none",
    precision: StoredPrecision = "fp32",
) -> FeatureKey:
    """The key of one output of a backbone for one view.

    Args:
        spec: The backbone.
        weights_digest: Of its weights.
        contract: How inputs are prepared.
        data_digest: Of the data set.
        output: Pooled features, which are always stored in fp32, or the cut of activations.
        view: Which of the fixed views.
        augment: Of what the views are draws.
        precision: Of activations.
    """
    pooled = isinstance(output, str)
    return FeatureKey(
        backbone=spec.name,
        weights=weights_digest,
        cut=output if isinstance(output, str) else f"stage-{output}",
        transform=transform_digest(contract),
        data=data_digest,
        view=view,
        augment=augment,
        dtype="float32" if pooled or precision == "fp32" else "float16",
    )


class Splits(Protocol):
    """Whatever has its rows in splits: a data set, or its pieces."""

    def indices(self, split: Split) -> npt.NDArray[np.int64]:
        """The rows of a split, ascending."""


def search_rows(rows: Splits) -> npt.NDArray[np.int64]:
    """The examples or pieces that a search reads, in order: training and validation, never test."""
    return np.sort(np.concatenate([rows.indices("train"), rows.indices("validation")]))


def compute_outputs(
    backbone: Backbone,
    examples: Examples,
    rows: npt.NDArray[np.int64],
    wanted: Sequence[Output],
    *,
    contract: Contract,
    view: int = 0,
    augment: Augment = "none",
    device: torch.device,
    threads: int,
    expected: int | None = 0,
) -> Iterator[list[Values]]:
    """Outputs of a backbone for some examples, each in one fixed view.

    Args:
        backbone: Put into eval mode and left there.
        examples: The whole data set.
        rows: Which pieces, int64 [n].
        wanted: Poolings, or cuts.
        contract: How inputs are prepared.
        view: Which of the fixed views; without augmentation 0 is the image itself.
        augment: Of what the views are draws.
        device: Where the forward pass runs.
        threads: Decoding threads, and ONNX Runtime's.
        expected: How many images this process will see in all, these included: on CPUs most run
            through ONNX Runtime where that pays, and where its outputs agree with torch's on the
            first batch that the process sees. None for torch alone.

    Yields:
        For each batch in order, an array [n, *shape] for each of `wanted`.
    """
    placed(backbone.eval(), device)
    may_export = expected is not None and device.type == "cpu"
    may_export = may_export and isinstance(contract, InputContract)
    exported = known_export(backbone, wanted) if may_export else None
    forward: Callable[[Any], list[Any]] = exported or partial(backbone.outputs, wanted=wanted)
    batches = iterate_inputs(
        examples,
        batched(rows, BATCH_SIZE),
        contract=contract,
        view=view,
        augment=augment,
        threads=threads,
    )
    for number, (_, prepared) in enumerate(batches, start=1):
        inputs = network_inputs(prepared, contract, device)
        started_s = time.monotonic()
        with torch.inference_mode():
            found = forward(inputs)
        if number == 1 and may_export and exported is None:
            assert isinstance(inputs, Tensor)
            image_s = (time.monotonic() - started_s) / len(inputs)
            left = max(expected or 0, len(rows)) - len(inputs)
            if left * image_s > EXPORT_PAYS_S:
                forward = export(backbone, wanted, inputs, found, threads=threads) or forward
        yield [backbone.to_stored(values) for values in found]


def compute_features(
    backbone: Backbone,
    examples: Examples,
    rows: npt.NDArray[np.int64],
    *,
    contract: Contract,
    pooling: Pooling,
    view: int = 0,
    device: torch.device,
    threads: int,
    on_images: Callable[[int], None] | None = None,
) -> Float32:
    """Pooled features of some examples, float32 [n, D]; arguments as in `compute_outputs`.

    Args:
        backbone: Put into eval mode and left there.
        examples: The whole data set.
        rows: Which examples, int64 [n].
        contract: How inputs are prepared.
        pooling: Which features.
        view: Which of the fixed views.
        device: Where the forward pass runs.
        threads: Decoding threads.
        on_images: Called with the number of images done since the last call.
    """
    found: list[Float32] = []
    for (features,) in compute_outputs(
        backbone,
        examples,
        rows,
        [pooling],
        contract=contract,
        view=view,
        device=device,
        threads=threads,
    ):
        found.append(features)
        if on_images is not None:
            on_images(len(features))
    return np.concatenate(found)
