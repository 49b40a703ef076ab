"""A frozen backbone's outputs through ONNX Runtime: the same numbers, in less time on CPUs."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import onnxruntime
import torch
from torch import Tensor, nn

from orchestrator.models.backbone import Backbone, Output

BOUND = 1e-3
OPSET = 18

# What this process has tried; None where there is no ONNX form, or one that does not agree.
_AGREED: WeakKeyDictionary[Backbone, dict[tuple[Output, ...], OnnxOutputs | None]] = (
    WeakKeyDictionary()
)


class OnnxOutputs:
    """Some outputs of a backbone, exported.

    Args:
        backbone: In eval mode; its weights must not change afterwards.
        wanted: Poolings, or cuts.
        images: Of the size that is meant, for the exporter to trace.
        threads: Of each call.

    Raises:
        Exception: Whatever torch's exporter or the runtime says of a model that it cannot take.
    """

    def __init__(
        self, backbone: Backbone, wanted: Sequence[Output], images: Tensor, *, threads: int
    ) -> None:
        names = [f"output_{n}" for n in range(len(wanted))]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as scratch, traceable():
            file = f"{scratch}/outputs.onnx"
            torch.onnx.export(
                _Outputs(backbone, wanted),
                (images[:2].contiguous(),),
                file,
                input_names=["images"],
                output_names=names,
                dynamic_axes={name: {0: "n"} for name in ("images", *names)},
                opset_version=OPSET,
                dynamo=False,
            )
            self._session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The outputs of images float32 [N, 3, S, S]."""
        found = self._session.run(None, {"images": images.contiguous().numpy()})
        return [torch.from_numpy(values) for values in found]


def known_export(backbone: Backbone, wanted: Sequence[Output]) -> OnnxOutputs | None:
    """What this process has exported of a backbone, and found to agree with torch."""
    return _AGREED.get(backbone, {}).get(tuple(wanted))


def export(
    backbone: Backbone,
    wanted: Sequence[Output],
    images: Tensor,
    expected: Sequence[Tensor],
    *,
    threads: int,
) -> OnnxOutputs | None:
    """The outputs through ONNX Runtime, if they agree with torch's on these images.

    They agree when no value differs by more than BOUND times the output's largest. The process
    keeps the outcome for as long as the backbone lives.

    Args:
        backbone: In eval mode.
        wanted: Poolings, or cuts.
        images: A batch on the CPU.
        expected: What torch makes of it.
        threads: Of each call.
    """
    kept = _AGREED.setdefault(backbone, {})
    if tuple(wanted) not in kept:
        kept[tuple(wanted)] = None
        try:
            outputs = OnnxOutputs(backbone, wanted, images, threads=threads)
        except Exception:  # noqa: BLE001  (exporters raise anything)
            logging.getLogger(__name__).info("%s has no ONNX form", backbone.spec.name)
        else:
            if agree(outputs(images), expected):
                kept[tuple(wanted)] = outputs
    return kept[tuple(wanted)]


def agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether outputs are the same up to BOUND of their largest value."""
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= BOUND * float(b.abs().max())
        for a, b in zip(found, expected, strict=True)
    )


@contextmanager
def traceable() -> Iterator[None]:
    """Meanwhile nothing is fused that has no ONNX form, and the tracer does not comment."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Outputs(nn.Module):
    """A backbone's outputs as a module's."""

    def __init__(self, backbone: Backbone, wanted: Sequence[Output]) -> None:
        super().__init__()
        self._backbone, self._wanted = backbone, list(wanted)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self._backbone.outputs(images, self._wanted)
        return tuple(output for output in outputs if isinstance(output, Tensor))
