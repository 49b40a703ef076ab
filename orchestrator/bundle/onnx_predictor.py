"""The Predictor that runs on ONNX Runtime. No torch: a replica starts in a third of the time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.manifest import BundleManifest
from orchestrator.bundle.predictor import NetworkPredictor, Outputs
from orchestrator.bundle.preparing import Preparer, preparer_of
from orchestrator.data.inputs import Prepared
from orchestrator.data.tokens import TokenRows
from orchestrator.errors import BundleError

OUTPUTS = ["logits", "features"]

_ERRORS_ONLY = 3


class OnnxPredictor(NetworkPredictor):
    """Answers with a model.onnx; threads may share one."""

    def __init__(self, manifest: BundleManifest, session: Any, preparer: Preparer) -> None:
        n_features = next(o.shape[-1] for o in session.get_outputs() if o.name == "features")
        super().__init__(manifest, preparer, n_features=n_features)
        self._session = session

    def run(self, prepared: Prepared) -> Outputs:
        return run_session(self._session, prepared)


def load_onnx_predictor(bundle: Bundle, *, threads: int | None) -> OnnxPredictor:
    """See `load_predictor`."""
    try:
        session = open_session(bundle.read("model.onnx"), threads=threads)
    except OnnxError as err:
        raise BundleError(f"{bundle.path}: model.onnx cannot be loaded ({err})") from err
    return OnnxPredictor(bundle.manifest, session, preparer_of(bundle))


class OnnxError(Exception):
    """ONNX Runtime refuses a model."""


def open_session(model: bytes, *, threads: int | None, one_of_many: bool = False) -> Any:
    """A session of ONNX Runtime on the CPU.

    Args:
        model: The bytes of an .onnx file.
        threads: Of each call; as many as there are cores when None.
        one_of_many: Whether memory counts more than a few microseconds a call: what a session keeps
            from one call to the next is a megabyte at least, and weights are kept in two layouts.

    Raises:
        OnnxError: If the runtime does not take the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    if one_of_many:
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as err:  # the runtime's errors have no other common base
        raise OnnxError(str(err).splitlines()[0]) from err


def run_session(session: Any, prepared: Prepared) -> Outputs:
    """The outputs of one view of inputs."""
    return Outputs(*session.run(OUTPUTS, fed(prepared)))


def fed(prepared: Prepared) -> dict[str, Any]:
    """Prepared inputs by the names that a model.onnx has for them."""
    if isinstance(prepared, TokenRows):
        types = {} if prepared.types is None else {"types": prepared.types}
        return {"ids": prepared.ids, "mask": prepared.mask, **types}
    return {"pixels": np.ascontiguousarray(prepared)}
