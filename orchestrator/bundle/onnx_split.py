"""A model.onnx in two halves: a trunk that models share, and the suffix that is a model's own.

No torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import onnx
from onnx.utils import Extractor

from orchestrator.bundle.onnx_predictor import OUTPUTS, fed
from orchestrator.bundle.predictor import Outputs
from orchestrator.data.inputs import Prepared
from orchestrator.errors import BundleError

Values = dict[str, Any]


def with_inner(model: bytes, names: Collection[str]) -> bytes:
    """The model with some of its outputs made values inside it, which keep their names."""
    if not names:
        return model
    proto = onnx.load_model_from_string(model)
    inner = [output for output in proto.graph.output if output.name in names]
    outer = [output for output in proto.graph.output if output.name not in names]
    proto.graph.value_info.extend(inner)
    del proto.graph.output[:]
    proto.graph.output.extend(outer)
    found: bytes = proto.SerializeToString(deterministic=True)
    return found


def trunk_of(model: bytes, tensors: Sequence[str]) -> bytes:
    """The part of a model.onnx that makes some tensors from its inputs.

    Raises:
        BundleError: If it has no such tensors.
    """
    proto = onnx.load_model_from_string(model)
    inputs = {value.name for value in proto.graph.input}
    return _extracted(proto, sorted(_reached(proto, tensors, stop=inputs)), tensors)


def suffix_of(model: bytes, tensors: Sequence[str]) -> bytes:
    """The part of a model.onnx that makes its outputs from what its trunk hands on.

    Raises:
        BundleError: If it has no such tensors, or needs more of what the trunk reads than the
            mask of a text.
    """
    proto = onnx.load_model_from_string(model)
    inputs = {value.name for value in proto.graph.input}
    own = [name for name in OUTPUTS if name not in tensors]
    used = _reached(proto, own, stop={*tensors, *inputs})
    if foreign := sorted(used - {*tensors, "mask"}):
        raise BundleError(f"model.onnx cannot be cut at {', '.join(tensors)}: it needs {foreign}")
    return _extracted(proto, sorted(used), own)


class Half:
    """One of the two, ready: from named values to named values.

    Args:
        session: Of ONNX Runtime.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = [value.name for value in session.get_outputs()]

    def handed_on(self, prepared: Prepared) -> Values:
        """Of a trunk: what it makes of inputs, by name, beside the inputs."""
        return self._run(fed(prepared))

    def outputs(self, handed_on: Values) -> Outputs:
        """Of a suffix: the outputs; the features may be what was handed on."""
        values = self._run(handed_on)
        return Outputs(*(values[name] for name in OUTPUTS))

    def _run(self, values: Values) -> Values:
        given = {name: values[name] for name in self._inputs}
        made = self._session.run(self._outputs, given)
        return {**values, **dict(zip(self._outputs, made, strict=True))}


def _extracted(proto: Any, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    try:
        part = Extractor(proto).extract_model(list(inputs), list(outputs))
    except ValueError as err:
        raise BundleError(f"model.onnx cannot be cut: {err}") from err
    found: bytes = part.SerializeToString()
    return found


def _reached(proto: Any, outputs: Sequence[str], *, stop: set[str]) -> set[str]:
    """Which values of `stop` the outputs are made from, looking no further than these."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    found: set[str] = set()
    seen: set[str] = set()
    open_names = list(outputs)
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in stop:
            found.add(name)
        elif name in makers:
            open_names += makers[name].input
    return found
