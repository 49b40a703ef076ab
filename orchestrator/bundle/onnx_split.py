"""A model.onnx in two halves: a trunk that models share, and the suffix that is a model's own.

No torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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


def run_trunk(session: Any, prepared: Prepared) -> Values:
    """What a trunk hands on, by name, beside what it was fed."""
    values = fed(prepared)
    return values | _run(session, values)


def run_suffix(session: Any, values: Mapping[str, Any]) -> Outputs:
    """The outputs of what a trunk handed on; features may be among that."""
    found = {**values, **_run(session, values)}
    return Outputs(*(found[name] for name in OUTPUTS))


def _run(session: Any, values: Mapping[str, Any]) -> Values:
    names = [output.name for output in session.get_outputs()]
    given = {value.name: values[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


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
