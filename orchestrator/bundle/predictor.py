"""The Predictor: a Bundle ready to answer. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, assert_never

import numpy as np
import numpy.typing as npt

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.manifest import BundleManifest
from orchestrator.bundle.preparing import Input, Preparer
from orchestrator.data.inputs import Prepared
from orchestrator.errors import DataError, SpecError
from orchestrator.tasks.task import MultiLabel, Task, build_task

Probabilities = npt.NDArray[np.float32]
Runtime = Literal["torch"]


class Predictor(Protocol):
    """A Bundle ready to answer, whatever runs its weights."""

    @property
    def manifest(self) -> BundleManifest:
        """Task, input contract and evidence of the bundle that answers."""

    @property
    def preparer(self) -> Preparer:
        """Makes what `probabilities` takes."""

    def probabilities(self, views: Sequence[Prepared]) -> Probabilities:
        """Probabilities of every label.

        Args:
            views: The N inputs as `preparer` makes them; N may be 0. Of texts, one batch for each
                of the windows whose logits are averaged.

        Returns:
            float32 [N, C], calibrated by the bundle's temperature.
        """

    def predict(
        self, inputs: Sequence[Input], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[dict[str, Any]]:
        """One answer for each input, in order, computed as they are asked for.

        An answer is `{"uri": …, "label": …, "probabilities": {label: probability}}`; a multi-label
        task gives `"labels"`, a list. An input that cannot be decoded gives
        `{"uri": …, "error": reason}` and does not stop the others. `uri` is the path as given, or
        `input:<position>` for bytes and images in memory.

        Args:
            inputs: Of an image model paths, encoded images, or PIL images; of a text model texts,
                or Paths and bytes of text files.
            top: How many of the likeliest labels have their probability in the answer.
            batch_size: Inputs that are decoded and answered together.
        """


def load_predictor(
    bundle: Bundle, *, device: str = "cpu", threads: int | None = None, runtime: Runtime = "torch"
) -> Predictor:
    """A bundle's model, built without downloading anything and filled from its verified weights.

    Args:
        bundle: As `open_bundle` gives it.
        device: Such as `cpu`, `cuda` or `cuda:1`.
        threads: CPU threads of one forward pass; torch has one such number for the whole process.
        runtime: What runs the weights.

    Raises:
        BundleError: If the weights do not fit the model that the installed libraries build.
        IntegrityError: If the files changed since the bundle was opened.
        SpecError: If there is no such device.
    """
    match runtime:
        case "torch":
            from orchestrator.bundle.torch_predictor import load_torch_predictor

            return load_torch_predictor(bundle, device=device, threads=threads)
        case _:
            assert_never(runtime)


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
        results.append({"uri": preparer.uri(value, position)})
        try:
            read.append(preparer.read(value))
        except (DataError, OSError, ValueError) as err:
            results[-1]["error"] = _reason(err)
        else:
            decoded.append(results[-1])
    if read:
        task = calibrated_task(predictor.manifest)
        answered = predictor.probabilities(preparer.batch(read))
        for result, probs in zip(decoded, answered, strict=True):
            result.update(task.answer(probs, top=top))
    return results


def calibrated_task(manifest: BundleManifest) -> Task:
    """The bundle's Task, answering at the bundle's threshold."""
    task = build_task(manifest.task)
    return replace(task, threshold=manifest.threshold) if isinstance(task, MultiLabel) else task


def _reason(err: Exception) -> str:
    """Why an input has no answer, without its path, which the answer has in `uri`."""
    reason = getattr(err, "reason", None) or getattr(err, "strerror", None)
    return str(reason or err)
