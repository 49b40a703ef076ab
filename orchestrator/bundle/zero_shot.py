"""A zero-shot Bundle that answers for any labels. Importing this module imports no torch.

The image encoder is the bundle's own Predictor, whatever runs it. A set of labels is a matrix that
the text tower makes once: it is kept by content, so that asking again costs the image encoder
alone. The text tower is loaded when the first set that is not known yet comes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.manifest import FileName
from orchestrator.bundle.predictor import (
    Floats,
    NetworkPredictor,
    Outputs,
    Predictor,
    load_predictor,
)
from orchestrator.data.inputs import Prepared
from orchestrator.errors import BundleError, SpecError
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import Runtime, TaskSpec
from orchestrator.spec.prompts import LabelSet

if TYPE_CHECKING:
    from orchestrator.models.clip import Clip

TEXT_TOWER: FileName = "text.safetensors"
CACHE_BYTES = 64 << 20
_TEXT_FILES: tuple[FileName, ...] = (
    TEXT_TOWER,
    "open_clip_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def is_open(bundle: Bundle) -> bool:
    """Whether a bundle can answer for labels that are not its own."""
    return TEXT_TOWER in bundle.manifest.files


@dataclass(frozen=True)
class _Classes:
    """A label set as a linear layer over features of length one: [C, D], and one bias for all."""

    weight: Floats
    bias: float

    @property
    def bytes(self) -> int:
        return self.weight.nbytes


class LabelledPredictor(NetworkPredictor):
    """A zero-shot bundle's encoder under one set of labels: a Predictor as any other."""

    def __init__(self, encoder: Predictor, labels: tuple[str, ...], classes: _Classes) -> None:
        task = TaskSpec(kind=encoder.manifest.task.kind, labels=labels)
        manifest = encoder.manifest.model_copy(update={"task": task})
        super().__init__(manifest, encoder.preparer, n_features=classes.weight.shape[1])
        self._encoder, self._classes = encoder, classes

    def run(self, prepared: Prepared) -> Outputs:
        features = self._encoder.embeddings([prepared])
        length = np.linalg.norm(features, axis=1, keepdims=True)
        unit = features / np.maximum(length, np.float32(1e-12))
        return Outputs(unit @ self._classes.weight.T + np.float32(self._classes.bias), features)


class ZeroShotPredictor:
    """A zero-shot bundle, ready to answer under its own labels or any others.

    It may be asked from several threads.

    Args:
        bundle: Has a text tower (`is_open`).
        encoder: The bundle's own Predictor.
        cache_bytes: Of the label sets that are kept, those longest unused let go first; the newest
            is always kept.

    Attributes:
        own: Answers under the bundle's own labels.
    """

    def __init__(
        self, bundle: Bundle, encoder: Predictor, *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        if not is_open(bundle):
            raise BundleError(
                f"{bundle.path} has labels of its own and no text tower for others. Give no "
                "labels, or a zero-shot bundle"
            )
        self.own = encoder
        self._bundle = bundle
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[str, _Classes] = OrderedDict()
        self._lock = threading.Lock()  # of what is kept
        self._reading = threading.Lock()  # of the text tower: one set at a time
        self._clip: Clip | None = None

    def labelled(self, labels: LabelSet) -> LabelledPredictor:
        """The same model under other labels.

        Raises:
            SpecError: A prompt is too long, or there are fewer than two labels.
        """
        if len(labels.labels) < 2:
            raise SpecError(f"labels: {labels.labels[0]!r} alone is always right. Give two or more")
        prompts = labels.prompts()
        key = digest_of([list(texts) for texts in prompts.values()])
        classes = self._find(key)
        if classes is None:
            with self._reading:
                classes = self._find(key) or self._made(key, prompts)
        return LabelledPredictor(self.own, labels.labels, classes)

    @property
    def kept_bytes(self) -> int:
        """Of the label sets that are kept now."""
        with self._lock:
            return sum(classes.bytes for classes in self._kept.values())

    def _find(self, key: str) -> _Classes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _made(self, key: str, prompts: dict[str, tuple[str, ...]]) -> _Classes:
        found = self._text_tower().label_embeddings(prompts)
        classes = _Classes(found.weight.cpu().numpy(), found.bias)
        with self._lock:
            self._kept[key] = classes
            held = sum(kept.bytes for kept in self._kept.values())
            while held > self._cache_bytes and len(self._kept) > 1:
                _, gone = self._kept.popitem(last=False)
                held -= gone.bytes
        return classes

    def _text_tower(self) -> Clip:
        if self._clip is None:
            from orchestrator.models.clip import load_text_side

            names = [name for name in _TEXT_FILES if name in self._bundle.manifest.files]
            self._clip = load_text_side(
                self._bundle.manifest.backbone.name,
                {name: self._bundle.read(name) for name in names},
                digest=self._bundle.digest,
            )
        return self._clip


def load_zero_shot_predictor(
    bundle: Bundle,
    *,
    runtime: Runtime = "auto",
    device: str = "cpu",
    threads: int | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> ZeroShotPredictor:
    """A zero-shot bundle's model; arguments and errors as of `load_predictor`.

    Raises:
        BundleError: It has no text tower.
    """
    encoder = load_predictor(bundle, runtime=runtime, device=device, threads=threads)
    return ZeroShotPredictor(bundle, encoder, cache_bytes=cache_bytes)
