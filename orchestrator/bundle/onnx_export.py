"""Writing a Classifier as ONNX, and the proof on real inputs that it says what torch says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.bundle.manifest import Cut, OnnxReport
from orchestrator.bundle.onnx_predictor import OUTPUTS, OnnxError, fed, open_session, run_session
from orchestrator.bundle.onnx_split import Half, suffix_of, trunk_of, with_inner
from orchestrator.bundle.predictor import Outputs
from orchestrator.data.inputs import Prepared, taken
from orchestrator.data.tokens import TokenRows
from orchestrator.data.transforms import scale_and_shift
from orchestrator.errors import BundleError
from orchestrator.features.network_inputs import network_inputs
from orchestrator.features.onnx_outputs import traceable
from orchestrator.models.backbone import Inputs, Prefix
from orchestrator.models.classifier import Classifier
from orchestrator.models.tokens import Tokens
from orchestrator.spec.parts import Contract, InputContract

OPSET = 20  # the newest that torch's exporter writes without further packages
TOLERANCE = 1e-3

_LONGEST_REASON = 200
_LONGEST_TEXT = 1024  # tokens; attention over many more would need gigabytes


@dataclass(frozen=True)
class Exported:
    """A model.onnx, and how it compares with torch.

    Attributes:
        model: The bytes of the file.
        report: Of the comparison.
        tensors: Names of what the stages up to the cut hand on; none where it cannot be cut.
    """

    model: bytes
    report: OnnxReport
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class NotExported:
    """Why there is no model.onnx."""

    reason: str


def export_onnx(
    classifier: Classifier,
    contract: Contract,
    samples: Sequence[Prepared],
    *,
    cut: Cut | None = None,
) -> Exported | NotExported:
    """A Classifier as ONNX, if ONNX Runtime then says what torch says.

    Its inputs are what the bundle's preparer makes: `pixels` uint8 [n, 3, S, S], normalised inside;
    or `ids` int64 and `mask` bool [n, length], and `types` int64 of pairs of texts. Its outputs are
    `logits` and `features`, the mean over the views of an image. Samples are compared in several
    batch sizes and lengths, so that none stays fixed in the graph.

    Args:
        classifier: On the CPU, in eval mode.
        contract: How its inputs are prepared.
        samples: Real evaluation inputs, a batch for each view.
        cut: Where the graph is to be cut in two.
    """
    graph = _Graph(classifier, contract, cut).eval()
    try:
        model = _written(graph, samples[0])
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
    report = OnnxReport(opset=OPSET, tolerance=TOLERANCE, max_difference=largest)
    whole = run_session(session, samples[0])
    is_cut = bool(graph.handed_on) and _halves_agree(model, graph, samples[0], whole)
    return Exported(model, report, graph.handed_on if is_cut else ())


class _Graph(nn.Module):
    """What is traced: prepared inputs as single tensors to a tuple of outputs.

    Attributes:
        handed_on: Names of what the stages up to the cut hand on to the rest, for each view: the
            activations, and with pooling `multi-scale` what was pooled before them; or features.
    """

    def __init__(self, classifier: Classifier, contract: Contract, cut: Cut | None) -> None:
        super().__init__()
        self._classifier, self.cut = classifier, cut
        self.by_position = classifier.pooling == "none"
        self.handed_on = _names(classifier, contract, cut)
        if isinstance(contract, InputContract):
            scale, shift = scale_and_shift(contract.mean, contract.std)
            self.register_buffer("_scale", torch.from_numpy(scale))
            self.register_buffer("_shift", torch.from_numpy(shift))

    def forward(self, *fed: Tensor) -> tuple[Tensor, ...]:
        classifier, backbone = self._classifier, self._classifier.backbone
        inputs = self._inputs(fed)
        views = classifier.averaged_views(inputs)
        handed_on: list[Tensor] = []
        if isinstance(self.cut, int):
            features = []
            for view in views:
                prefix = backbone.prefix(view, self.cut, classifier.pooling)
                handed_on += _tensors(prefix)
                features.append(
                    backbone.features_from(
                        prefix.activations, self.cut, classifier.pooling, earlier=prefix.pooled
                    )
                )
        else:
            features = [backbone.features(view, classifier.pooling) for view in views]
            handed_on += features
        found = classifier.outputs_from(features, inputs)
        further = handed_on if self.handed_on not in ((), ("features",)) else []
        return found.logits, found.features, *further

    def _inputs(self, fed: tuple[Tensor, ...]) -> Inputs:
        if len(fed) == 1:
            return fed[0].float() * self._scale + self._shift  # type: ignore[operator]
        return Tokens(*fed)


def _names(classifier: Classifier, contract: Contract, cut: Cut | None) -> tuple[str, ...]:
    n_views = classifier.predict_views if isinstance(contract, InputContract) else 1
    if cut == "features" and n_views == 1:
        return ("features",)  # an output already
    kinds = ["trunk"]
    if isinstance(cut, int) and classifier.backbone.n_pooled(cut, classifier.pooling):
        kinds.append("pooled")
    views = range(n_views if cut is not None else 0)
    return tuple(f"{kind}_{view}" for view in views for kind in kinds)


def _tensors(prefix: Prefix) -> list[Tensor]:
    found = prefix.activations
    activations = found if isinstance(found, Tensor) else found.states
    return [activations, prefix.pooled] if prefix.pooled.shape[1] else [activations]


def _written(graph: _Graph, view: Prepared) -> bytes:
    """The bytes of the .onnx file; what is handed on has its name in it, but is no output."""
    inputs = {name: torch.from_numpy(value) for name, value in fed(_doubled(view)).items()}
    outputs = list(dict.fromkeys([*OUTPUTS, *graph.handed_on]))
    with tempfile.TemporaryDirectory() as scratch, traceable():
        file = Path(scratch) / "model.onnx"
        torch.onnx.export(
            graph,
            tuple(inputs.values()),
            str(file),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: _dynamic(name, graph, view) for name in (*inputs, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
        return with_inner(file.read_bytes(), set(outputs) - set(OUTPUTS))


def _dynamic(name: str, graph: _Graph, view: Prepared) -> dict[int, str]:
    """The axes whose size is not fixed."""
    states = name.startswith("trunk_") and graph.cut != "features" and isinstance(view, TokenRows)
    by_token = states or (name == "logits" and graph.by_position)
    return {0: "n", 1: "length"} if by_token or name in ("ids", "mask", "types") else {0: "n"}


def _halves_agree(model: bytes, graph: _Graph, view: Prepared, whole: Outputs) -> bool:
    """Whether the two halves in a row say what the whole does."""
    try:
        trunk = Half(open_session(trunk_of(model, graph.handed_on), threads=None))
        suffix = Half(open_session(suffix_of(model, graph.handed_on), threads=None))
    except (OnnxError, BundleError):
        return False
    return _difference(suffix.outputs(trunk.handed_on(view)), whole) <= TOLERANCE


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
    longest = min(contract.size, _LONGEST_TEXT)
    for size in (length, longest):
        ids, types = (
            None if given is None else np.resize(given[:, :length], (1, size))
            for given in (first.ids, first.types)
        )
        assert ids is not None
        yield TokenRows(ids, np.array([size]), types)


def _doubled(view: Prepared) -> Prepared:
    return taken(view, np.tile(np.arange(len(view)), 2))


def _difference(found: Outputs, expected: Outputs) -> float:
    """The largest of logits and features, as a share of the largest value or of 1."""
    pairs = ((found.logits, expected.logits), (found.features, expected.features))
    return float(np.max([np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in pairs]))
