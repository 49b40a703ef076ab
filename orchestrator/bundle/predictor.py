"""The Predictor: a Bundle ready to answer. Importing this module imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, assert_never

import numpy as np
import numpy.typing as npt

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.manifest import BundleManifest
from orchestrator.bundle.preparing import Input, Preparer
from orchestrator.data.inputs import Prepared, taken
from orchestrator.data.tokens import TokenRows
from orchestrator.errors import BundleError, DataError, SpecError, reason_of
from orchestrator.spec.parts import Runtime
from orchestrator.spec.stopping import go_on
from orchestrator.tasks.task import MultiLabel, Task, build_task

if TYPE_CHECKING:
    from orchestrator.bundle.shared_trunk import SharedTrunk

# Texts that go through a network together: what attention holds of a few long texts' windows at
# once would be tens of gigabytes.
MOST_ROWS = 32

NOT_FINITE = "the model's output for this input is not finite"  # the model's fault, not the input's

Floats = npt.NDArray[np.float32]
Probabilities = Floats


@dataclass(frozen=True)
class Outputs:
    """What a network says of N inputs.

    Attributes:
        logits: float32 [N, C], before temperature; [N, L, C] where every token has an answer.
        features: float32 [N, D]; what the head reads, or its mean over tokens.
    """

    logits: Floats
    features: Floats


class Predictor(Protocol):
    """A Bundle ready to answer, whatever runs its weights."""

    @property
    def manifest(self) -> BundleManifest:
        """Task, input contract and evidence of the bundle that answers."""

    @property
    def preparer(self) -> Preparer:
        """Makes what `outputs` takes."""

    def outputs(self, views: Sequence[Prepared]) -> Outputs:
        """Logits and features from one forward pass.

        Args:
            views: The N inputs as `preparer` makes them; N may be 0. Of texts, one batch for each
                of the windows whose logits are averaged. Texts that answers point into may be
                several inputs each: `preparer` makes of the outputs what is said of them.
        """

    def probabilities(self, views: Sequence[Prepared]) -> Probabilities:
        """`Task.probabilities` of the logits, calibrated by the bundle's temperature: float32."""

    def embeddings(self, views: Sequence[Prepared]) -> Floats:
        """The features that the head reads: float32 [N, D], the mean over an input's views."""

    def calibrated(self, logits: Floats) -> Probabilities:
        """Probabilities of logits: float32 [N, C]."""

    def predict(
        self, inputs: Sequence[Input], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[dict[str, Any]]:
        """One answer for each input, in order, computed as they are asked for.

        An answer is `{"uri": …, "label": …, "probabilities": {label: probability}}`; a multi-label
        task gives `"labels"`, a list. Token classification gives `"entities"`, each with `label`,
        `start`, `end`, `text` and `score`; question answering `answer`, `start`, `end`, `score` and
        `alternatives`; positions are characters of the text or context. An input that cannot be
        decoded, or whose output is not finite, gives `{"uri": …, "error": reason}`
        and does not stop the others. `uri` is the path as given, or `input:<position>` for bytes
        and images in memory.

        Args:
            inputs: Of an image model paths, encoded images, or PIL images; of a text model texts,
                or Paths and bytes of text files; of one that answers questions mappings of
                `question` and `context`, or these as JSON.
            top: How many of the likeliest labels have their probability in the answer, or how many
                answers are given.
            batch_size: Inputs that are decoded and answered together.
        """


class NetworkPredictor(ABC):
    """A Predictor, but for the forward pass of one view.

    Args:
        manifest: Of the bundle.
        preparer: Of the bundle.
        n_features: D of its features.
    """

    def __init__(self, manifest: BundleManifest, preparer: Preparer, *, n_features: int) -> None:
        self._manifest = manifest
        self._preparer = preparer
        self._n_features = n_features
        self._task = calibrated_task(manifest)

    @property
    def manifest(self) -> BundleManifest:
        return self._manifest

    @property
    def preparer(self) -> Preparer:
        return self._preparer

    @property
    def n_features(self) -> int:
        """D of its features."""
        return self._n_features

    @abstractmethod
    def run(self, prepared: Prepared) -> Outputs:
        """The outputs of one view of at least one input, whose shape is right."""

    def outputs(self, views: Sequence[Prepared]) -> Outputs:
        for view in views:
            self._refuse_other_shapes(view)
        if not len(views[0]):
            widths = (self._task.n_outputs, self._n_features)
            return Outputs(*(np.empty((0, width), np.float32) for width in widths))
        return mean_outputs([self._in_parts(view) for view in views])

    def probabilities(self, views: Sequence[Prepared]) -> Probabilities:
        return self.calibrated(self.outputs(views).logits)

    def embeddings(self, views: Sequence[Prepared]) -> Floats:
        return self.outputs(views).features

    def calibrated(self, logits: Floats) -> Probabilities:
        scaled = logits / np.float32(self._manifest.temperature)
        return self._task.probabilities(scaled).astype(np.float32, copy=False)

    def predict(
        self, inputs: Sequence[Input], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[dict[str, Any]]:
        return answers(self, inputs, top=top, batch_size=batch_size)

    def _in_parts(self, prepared: Prepared) -> Outputs:
        """The outputs of one view; of many texts, from several passes that are padded alike."""
        n = len(prepared)
        if not isinstance(prepared, TokenRows) or n <= MOST_ROWS:
            return self._pass(prepared)
        rows = np.arange(n)
        parts = [
            self._pass(taken(prepared, rows[at : at + MOST_ROWS])) for at in range(0, n, MOST_ROWS)
        ]
        return Outputs(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.features for part in parts]),
        )

    def _pass(self, prepared: Prepared) -> Outputs:
        go_on()
        return self.run(prepared)

    def _refuse_other_shapes(self, prepared: Prepared) -> None:
        size = self._manifest.input.size
        if isinstance(prepared, TokenRows):
            return
        if prepared.dtype != np.uint8 or prepared.shape[1:] != (3, size, size):
            raise SpecError(
                f"pixels: {prepared.dtype} {list(prepared.shape)} is not uint8 "
                f"[N, 3, {size}, {size}]. Use the predictor's preparer"
            )


def load_predictor(
    bundle: Bundle, *, runtime: Runtime = "auto", device: str = "cpu", threads: int | None = None
) -> NetworkPredictor:
    """A bundle's model, built without downloading anything and filled from its verified weights.

    Args:
        bundle: As `open_bundle` gives it.
        runtime: What runs the weights: `onnx` is ONNX Runtime, which needs no torch; `auto` is
            `onnx` on the CPU where the bundle has it, and `torch` otherwise.
        device: Such as `cpu`, `cuda` or `cuda:1`.
        threads: CPU threads of one forward pass; torch has one such number for the whole process.

    Raises:
        BundleError: If the weights do not fit the model that the installed libraries build, or
            there is no model.onnx where `onnx` is asked for.
        IntegrityError: If the files changed since the bundle was opened.
        SpecError: If there is no such device.
    """
    match resolved_runtime(bundle, runtime, device=device):
        case "onnx":
            from orchestrator.bundle.onnx_predictor import load_onnx_predictor

            return load_onnx_predictor(bundle, threads=threads)
        case "torch":
            from orchestrator.bundle.torch_predictor import load_torch_predictor

            return load_torch_predictor(bundle, device=device, threads=threads)
        case never:
            assert_never(never)


def load_predictors(
    bundles: Sequence[Bundle],
    *,
    runtime: Runtime = "auto",
    device: str = "cpu",
    threads: int | None = None,
    batch_rows: int = 1,
) -> list[Predictor]:
    """The Predictors of several bundles; those of one frozen trunk share it.

    Bundles that no other one shares a trunk with, or that torch runs, are loaded by themselves.
    The other arguments and errors are those of `load_predictor`.

    Args:
        batch_rows: Inputs of several threads' calls that go through a network, or a trunk, in one
            pass; 1 for a pass each, at the same time.
    """

    def trunk(bundle: Bundle) -> tuple[str, bool] | None:
        shares = resolved_runtime(bundle, runtime, device=device) == "onnx"
        return bundle.manifest.trunk_key if shares else None

    counts = Counter(map(trunk, bundles))
    trunks: dict[tuple[str, bool], SharedTrunk] = {}
    found: list[Predictor] = []
    for bundle in bundles:
        key = trunk(bundle)
        if key is None or counts[key] == 1:
            one = load_predictor(bundle, runtime=runtime, device=device, threads=threads)
            found.append(_batched(one, batch_rows))
            continue
        if key not in trunks:
            from orchestrator.bundle.shared_trunk import SharedTrunk

            trunks[key] = SharedTrunk(bundle, threads=threads, batch_rows=batch_rows)
        found.append(trunks[key].predictor(bundle))
    return found


def _batched(network: NetworkPredictor, batch_rows: int) -> NetworkPredictor:
    if batch_rows == 1:
        return network
    from orchestrator.bundle.batching import BatchedPredictor

    return BatchedPredictor(network, most_rows=batch_rows)


def resolved_runtime(
    bundle: Bundle, runtime: Runtime, *, device: str = "cpu"
) -> Literal["onnx", "torch"]:
    """What `load_predictor` runs a bundle with.

    Raises:
        BundleError: If `onnx` is asked for and the bundle has no model.onnx.
        SpecError: If `onnx` is asked for on another device than the CPU.
    """
    has_onnx = "model.onnx" in bundle.manifest.files
    if runtime == "auto":
        return "onnx" if has_onnx and device == "cpu" else "torch"
    if runtime == "onnx" and device != "cpu":
        raise SpecError(f"device: {device!r}, but runtime onnx has only cpu. Use runtime torch")
    if runtime == "onnx" and not has_onnx:
        reason = bundle.manifest.without_onnx or "it was written by a version that made none"
        raise BundleError(f"{bundle.path} has no model.onnx: {reason}. Use runtime torch")
    return runtime


def answers(
    predictor: Predictor, inputs: Sequence[Input], *, top: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    """What `Predictor.predict` promises, on top of `Predictor.probabilities`."""
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise SpecError(f"{name}: {value} is not at least 1")
    starts = range(0, len(inputs), batch_size)
    batches = (_answer_batch(predictor, inputs, start, start + batch_size, top) for start in starts)
    return (answer for batch in batches for answer in batch)


def _answer_batch(
    predictor: Predictor, inputs: Sequence[Input], start: int, stop: int, top: int
) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    read: list[Any] = []
    decoded: list[dict[str, Any]] = []
    preparer = predictor.preparer
    for position, value in enumerate(inputs[start:stop], start):
        go_on()
        results.append({"uri": preparer.uri(value, position)})
        try:
            read.append(preparer.read(value))
        except (DataError, OSError, ValueError) as err:
            results[-1]["error"] = reason_of(err)
        else:
            decoded.append(results[-1])
    if read:
        for result, answer in zip(decoded, _answered(predictor, read, top), strict=True):
            result.update(answer)
    return results


def _answered(predictor: Predictor, read: Sequence[Any], top: int) -> Iterable[dict[str, Any]]:
    """The answer to each input; an error for one whose outputs are not finite."""
    preparer = predictor.preparer
    outputs = predictor.probabilities(preparer.batch(read))
    if np.isfinite(outputs).all():
        return preparer.answers(read, outputs, calibrated_task(predictor.manifest), top=top)
    if len(read) == 1:
        return [{"error": NOT_FINITE}]
    return [answer for one in read for answer in _answered(predictor, [one], top)]


def calibrated_task(manifest: BundleManifest) -> Task:
    """The bundle's Task, answering at the bundle's threshold."""
    task = build_task(manifest.task)
    return replace(task, threshold=manifest.threshold) if isinstance(task, MultiLabel) else task


def mean_outputs(views: Sequence[Outputs]) -> Outputs:
    """The mean over the views of each input."""
    if len(views) == 1:
        return views[0]
    return Outputs(
        np.mean([view.logits for view in views], axis=0),
        np.mean([view.features for view in views], axis=0),
    )
