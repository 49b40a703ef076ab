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
class Classes:
    """A label set as a linear layer over features of length one: [C, D], and one bias for all."""

    weight: Floats
    bias: float

    @property
    def bytes(self) -> int:
        return self.weight.nbytes


class LabelledPredictor(NetworkPredictor):
    """A zero-shot bundle's encoder under one set of labels: a Predictor as any other."""

    def __init__(self, encoder: Predictor, labels: tuple[str, ...], classes: Classes) -> None:
        task = TaskSpec(kind=encoder.manifest.task.kind, labels=labels)
        manifest = encoder.manifest.model_copy(update={"task": task})
        super().__init__(manifest, encoder.preparer, n_features=classes.weight.shape[1])
        self._encoder, self._classes = encoder, classes

    def run(self, prepared: Prepared) -> Outputs:
        features = self._encoder.embeddings([prepared])
        length = np.linalg.norm(features, axis=1, keepdims=True)
        unit = features / np.maximum(length, np.float32(1e-12))
        return Outputs(unit @ self._classes.weight.T + np.float32(self._classes.bias), features)


class TextTower:
    """Label sets as a zero-shot bundle's text tower reads them, each once, kept by content.

    Threads may share one, and so may the bundles of one CLIP (`tower_digest`).

    Args:
        bundle: Has a text tower (`is_open`).
        cache_bytes: Of the label sets that are kept, those longest unused let go first; the newest
            is always kept.
    """

    def __init__(self, bundle: Bundle, *, cache_bytes: int = CACHE_BYTES) -> None:
        if not is_open(bundle):
            raise BundleError(
                f"{bundle.path} has labels of its own and no text tower for others. Give no "
                "labels, or a zero-shot bundle"
            )
        self._bundle = bundle
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[str, Classes] = OrderedDict()
        self._lock = threading.Lock()  # of what is kept
        self._reading = threading.Lock()  # of the text tower: one set at a time
        self._clip: Clip | None = None

    def classes(self, labels: LabelSet) -> Classes:
        """What labels are to features of length one.

        Raises:
            SpecError: A prompt is too long.
        """
        prompts = labels.prompts()
        key = digest_of([list(texts) for texts in prompts.values()])
        found = self._find(key)
        if found is not None:
            return found
        with self._reading:
            return self._find(key) or self._made(key, prompts)

    @property
    def kept_bytes(self) -> int:
        """Of the label sets that are kept now."""
        with self._lock:
            return sum(classes.bytes for classes in self._kept.values())

    def _find(self, key: str) -> Classes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _made(self, key: str, prompts: dict[str, tuple[str, ...]]) -> Classes:
        found = self._loaded().label_embeddings(prompts)
        classes = Classes(found.weight.cpu().numpy(), found.bias)
        with self._lock:
            self._kept[key] = classes
            held = sum(kept.bytes for kept in self._kept.values())
            while held > self._cache_bytes and len(self._kept) > 1:
                _, gone = self._kept.popitem(last=False)
                held -= gone.bytes
        return classes

    def _loaded(self) -> Clip:
        if self._clip is None:
            from orchestrator.models.clip import load_text_side

            self._clip = load_text_side(
                self._bundle.manifest.backbone.name,
                {name: self._bundle.read(name) for name in _text_files(self._bundle)},
                digest=self._bundle.digest,
            )
        return self._clip


def tower_digest(bundle: Bundle) -> str:
    """Equal for bundles whose text towers are, whatever their own labels."""
    files = bundle.manifest.files
    told = {name: files[name].sha256 for name in _text_files(bundle)}
    return digest_of({"name": bundle.manifest.backbone.name, "files": told})


def _text_files(bundle: Bundle) -> list[FileName]:
    return [name for name in _TEXT_FILES if name in bundle.manifest.files]


class ZeroShotPredictor:
    """A zero-shot bundle, ready to answer under its own labels or any others.

    It may be asked from several threads.

    Args:
        encoder: The bundle's own Predictor.
        texts: Its text tower, or one that equals it.

    Attributes:
        own: Answers under the bundle's own labels.
        own_labels: These, with the templates and descriptions that they were read with.
    """

    def __init__(self, encoder: Predictor, texts: TextTower) -> None:
        params = encoder.manifest.strategy
        self.own = encoder
        self.own_labels = LabelSet(
            labels=encoder.manifest.task.labels,
            templates=params.templates,
            descriptions=params.descriptions or {},
        )
        self._texts = texts

    def labelled(self, labels: LabelSet) -> LabelledPredictor:
        """The same model under other labels.

        Raises:
            SpecError: A prompt is too long, or there are fewer than two labels.
        """
        if len(labels.labels) < 2:
            raise SpecError(f"labels: {labels.labels[0]!r} alone is always right. Give two or more")
        return LabelledPredictor(self.own, labels.labels, self._texts.classes(labels))


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
    texts = TextTower(bundle, cache_bytes=cache_bytes)
    encoder = load_predictor(bundle, runtime=runtime, device=device, threads=threads)
    return ZeroShotPredictor(encoder, texts)
