"""Writing a Classifier as ONNX, and the proof on real inputs that it says what torch says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.bundle.manifest import OnnxReport
from orchestrator.bundle.onnx_predictor import OUTPUTS, OnnxError, fed, open_session, run_session
from orchestrator.bundle.predictor import Outputs
from orchestrator.data.inputs import Prepared, taken
from orchestrator.data.tokens import TokenRows
from orchestrator.data.transforms import scale_and_shift
from orchestrator.features.network_inputs import network_inputs
from orchestrator.features.onnx_outputs import traceable
from orchestrator.models.backbone import Inputs
from orchestrator.models.classifier import Classifier
from orchestrator.models.tokens import Tokens
from orchestrator.spec.parts import Contract, InputContract

OPSET = 20  # the newest that torch's exporter writes without further packages
TOLERANCE = 1e-3

_DYNAMIC = {
    "pixels": {0: "n"},
    "ids": {0: "n", 1: "length"},
    "mask": {0: "n", 1: "length"},
    "logits": {0: "n"},
    "features": {0: "n"},
}
_LONGEST_REASON = 200
_LONGEST_TEXT = 1024  # tokens; attention over many more would need gigabytes


@dataclass(frozen=True)
class Exported:
    """A model.onnx, and how it compares with torch."""

    model: bytes
    report: OnnxReport


@dataclass(frozen=True)
class NotExported:
    """Why there is no model.onnx."""

    reason: str


def export_onnx(
    classifier: Classifier, contract: Contract, samples: Sequence[Prepared]
) -> Exported | NotExported:
    """A Classifier as ONNX, if ONNX Runtime then says what torch says.

    Its inputs are what the bundle's preparer makes: `pixels` uint8 [n, 3, S, S], normalised inside;
    or `ids` int64 and `mask` bool [n, length]. Its outputs are `logits` and `features`, the mean
    over the views of an image. Samples are compared in several batch sizes and lengths, so that
    none stays fixed in the graph.

    Args:
        classifier: On the CPU, in eval mode.
        contract: How its inputs are prepared.
        samples: Real evaluation inputs, a batch for each view.
    """
    try:
        model = _written(_Graph(classifier, contract).eval(), samples[0])
        session = open_session(model, threads=None)
        differences = [
            _difference(run_session(session, batch), torch_outputs(classifier, contract, batch))
            for view in samples
            for batch in _batches(view, contract)
        ]
    except OnnxError as err:
        return NotExported(f"ONNX Runtime does not take it ({err})"[:_LONGEST_REASON])
    except Exception as err:  # noqa: BLE001  (exporters and runtimes raise anything)
        why = (str(err) or type(err).__name__).splitlines()[0]
        return NotExported(f"it has no ONNX form ({why})"[:_LONGEST_REASON])
    largest = float(np.max(differences))  # NaN where one is
    if not largest <= TOLERANCE:
        return NotExported(
            f"ONNX Runtime's outputs differ from torch's by {largest:.3g} of the largest, more "
            f"than {TOLERANCE:g}"
        )
    return Exported(model, OnnxReport(opset=OPSET, tolerance=TOLERANCE, max_difference=largest))


class _Graph(nn.Module):
    """What is traced: prepared inputs as single tensors to a tuple of outputs."""

    def __init__(self, classifier: Classifier, contract: Contract) -> None:
        super().__init__()
        self._classifier = classifier
        if isinstance(contract, InputContract):
            scale, shift = scale_and_shift(contract.mean, contract.std)
            self.register_buffer("_scale", torch.from_numpy(scale))
            self.register_buffer("_shift", torch.from_numpy(shift))

    def forward(self, *fed: Tensor) -> tuple[Tensor, ...]:
        found = self._classifier.outputs(self._inputs(fed))
        return found.logits, found.features

    def _inputs(self, fed: tuple[Tensor, ...]) -> Inputs:
        if len(fed) == 1:
            return fed[0].float() * self._scale + self._shift  # type: ignore[operator]
        return Tokens(*fed)


def _written(graph: _Graph, view: Prepared) -> bytes:
    """The bytes of the .onnx file."""
    inputs = {name: torch.from_numpy(value) for name, value in fed(_doubled(view)).items()}
    with tempfile.TemporaryDirectory() as scratch, traceable():
        file = Path(scratch) / "model.onnx"
        torch.onnx.export(
            graph,
            tuple(inputs.values()),
            str(file),
            input_names=list(inputs),
            output_names=OUTPUTS,
            dynamic_axes={name: _DYNAMIC[name] for name in (*inputs, *OUTPUTS)},
            opset_version=OPSET,
            dynamo=False,
        )
        return file.read_bytes()


@torch.inference_mode()
def torch_outputs(classifier: Classifier, contract: Contract, batch: Prepared) -> Outputs:
    """What torch says of one view of inputs on the CPU."""
    found = classifier.outputs(network_inputs(batch, contract, torch.device("cpu")))
    return Outputs(found.logits.float().numpy(), found.features.float().numpy())


def _batches(view: Prepared, contract: Contract) -> Iterator[Prepared]:
    """A view's inputs together, the first alone, and all of them twice.

    Of texts the first comes without its padding, and once more repeated up to full length.
    """
    yield view
    yield _doubled(view)
    first = taken(view, np.arange(1))
    if not isinstance(first, TokenRows):
        yield first
        return
    length = int(first.lengths[0])
    yield TokenRows(first.ids[:, :length], first.lengths)
    longest = min(contract.size, _LONGEST_TEXT)
    yield TokenRows(np.resize(first.ids[:, :length], (1, longest)), np.array([longest]))


def _doubled(view: Prepared) -> Prepared:
    return taken(view, np.tile(np.arange(len(view)), 2))


def _difference(found: Outputs, expected: Outputs) -> float:
    """The largest of logits and features, as a share of the largest value or of 1."""
    pairs = ((found.logits, expected.logits), (found.features, expected.features))
    return float(np.max([np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in pairs]))
