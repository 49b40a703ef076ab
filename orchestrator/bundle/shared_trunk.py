"""Bundles of one frozen trunk, served together: adding one costs its own layers, not a model.

A mixed batch goes through the trunk once, and each request then through the suffix of its bundle.
No torch.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from orchestrator.bundle.batching import Batcher, trimmed
from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.manifest import TrunkReport
from orchestrator.bundle.onnx_predictor import OnnxError, open_session
from orchestrator.bundle.onnx_split import Half, Values, suffix_of, trunk_of
from orchestrator.bundle.predictor import NetworkPredictor, Outputs, mean_outputs
from orchestrator.bundle.preparing import Preparer, preparer_of
from orchestrator.data.inputs import Prepared, joined
from orchestrator.errors import BundleError
from orchestrator.spec.parts import TextContract

SUFFIX_BYTES = 2 << 30


class SharedTrunk:
    """One trunk in memory, and the suffixes of the bundles that were fine-tuned from it.

    Suffixes that were not used for longest make room for others, and are read from their bundles
    again, and verified, when they are next asked for. Threads may share it.

    Args:
        bundle: Any of the bundles; the trunk is taken from it.
        threads: Of each call; as many as there are cores when None.
        suffix_bytes: Of suffixes that are kept ready; one that is larger is kept alone.
        batch_rows: Inputs of several threads' calls that pass through the trunk together; 1 for a
            pass each, at the same time.

    Raises:
        BundleError: If the bundle has no trunk, or ONNX Runtime does not take it.
        IntegrityError: If its files changed since it was opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        suffix_bytes: int = SUFFIX_BYTES,
        batch_rows: int = 1,
    ) -> None:
        self._report = _trunk_of(bundle)
        self._key = bundle.manifest.trunk_key
        self._contract = bundle.input
        self._threads = threads
        model = trunk_of(bundle.read("model.onnx"), self._report.tensors)
        self._trunk = Half(_opened(bundle, model, threads=threads))
        self._suffixes = _Suffixes(suffix_bytes)
        self._preparers: dict[tuple[str, int], Preparer] = {}
        self._batcher: Batcher[_Pass, Outputs] | None = None
        if batch_rows > 1:
            self._batcher = Batcher(
                self._together, rows=lambda one: len(one[1]), most_rows=batch_rows
            )

    @property
    def digest(self) -> str:
        """What bundles must have as the digest of their trunk."""
        return self._report.digest

    @property
    def suffix_bytes(self) -> int:
        """Of the suffixes that are ready."""
        return self._suffixes.used_bytes

    def predictor(self, bundle: Bundle) -> TrunkPredictor:
        """A bundle's Predictor on this trunk; its suffix is ready when this returns.

        Raises:
            BundleError: If it has no trunk or another one.
            IntegrityError: If its files changed since it was opened.
        """
        report = _trunk_of(bundle)
        if bundle.manifest.trunk_key != self._key:
            raise BundleError(
                f"{bundle.path} has the trunk {report.digest[:12]}, not {self.digest[:12]}, or is "
                "fed other inputs. Bundles are served together where both are equal"
            )
        return TrunkPredictor(bundle, self, self._preparer(bundle), self._suffix(bundle).n_features)

    def outputs(
        self, requests: Sequence[tuple[TrunkPredictor, Sequence[Prepared]]]
    ) -> list[Outputs]:
        """The outputs of each request, from one pass through the trunk for all of them.

        Args:
            requests: A predictor of this trunk, and the views of at least one input as its
                preparer makes them.
        """
        assert all(predictor.trunk is self for predictor, _ in requests), "of another trunk"
        flat = [(predictor, view) for predictor, views in requests for view in views]
        values = self._trunk.handed_on(joined([view for _, view in flat], self._pad))
        starts = np.cumsum([0, *(len(view) for _, view in flat)])
        found: dict[int, Outputs] = {}
        for positions in _by_bundle([predictor for predictor, _ in flat]):
            rows = [np.arange(starts[at], starts[at + 1]) for at in positions]
            own = self._own(flat[positions[0]][0].bundle, values, np.concatenate(rows))
            ends = np.cumsum([len(some) for some in rows])[:-1]
            parts = zip(np.split(own.logits, ends), np.split(own.features, ends), strict=True)
            found.update(zip(positions, (Outputs(*part) for part in parts), strict=True))
        views = iter([found[at] for at in range(len(flat))])
        return [mean_outputs([next(views) for _ in request]) for _, request in requests]

    def pass_of(self, predictor: TrunkPredictor, prepared: Prepared) -> Outputs:
        """One view's outputs, from a pass that other threads' views may share."""
        one = (predictor, prepared)
        return self._together([one])[0] if self._batcher is None else self._batcher(one)

    def _together(self, passes: Sequence[_Pass]) -> list[Outputs]:
        found = self.outputs([(predictor, [prepared]) for predictor, prepared in passes])
        return [trimmed(one, prepared) for one, (_, prepared) in zip(found, passes, strict=True)]

    def _own(self, bundle: Bundle, values: Values, rows: Any) -> Outputs:
        """What a bundle's suffix makes of some rows of what the trunk handed on."""
        names = [name for name in (*self._report.tensors, "mask") if name in values]
        return self._suffix(bundle).half.outputs({name: values[name][rows] for name in names})

    def _suffix(self, bundle: Bundle) -> _Suffix:
        return self._suffixes.get(bundle, threads=self._threads)

    @property
    def _pad(self) -> int:
        return self._contract.pad if isinstance(self._contract, TextContract) else 0

    def _preparer(self, bundle: Bundle) -> Preparer:
        """Tokenizers are larger than heads: bundles that prepare alike share one."""
        manifest = bundle.manifest
        key = (manifest.task.kind, manifest.strategy.predict_views)
        if key not in self._preparers:
            self._preparers[key] = preparer_of(bundle)
        return self._preparers[key]


class TrunkPredictor(NetworkPredictor):
    """Answers with a trunk that others share, and a suffix of its own."""

    def __init__(
        self, bundle: Bundle, trunk: SharedTrunk, preparer: Preparer, n_features: int
    ) -> None:
        super().__init__(bundle.manifest, preparer, n_features=n_features)
        self.bundle = bundle
        self.trunk = trunk

    def run(self, prepared: Prepared) -> Outputs:
        return self.trunk.pass_of(self, prepared)


_Pass = tuple[TrunkPredictor, Prepared]


@dataclass(frozen=True)
class _Suffix:
    """The layers that are a bundle's own, ready."""

    half: Half
    bytes: int
    n_features: int


class _Suffixes:
    """The suffixes used last, as many as fit."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, _Suffix] = OrderedDict()
        self._lock = Lock()  # never held while one is read: nobody waits for another bundle's
        self._reading: defaultdict[str, Lock] = defaultdict(Lock)

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return sum(suffix.bytes for suffix in self._kept.values())

    def get(self, bundle: Bundle, *, threads: int | None) -> _Suffix:
        if (found := self._ready(bundle.digest)) is not None:
            return found
        with self._lock:
            reading = self._reading[bundle.digest]
        with reading:
            if (found := self._ready(bundle.digest)) is not None:  # somebody else has read it
                return found
            suffix = _loaded(bundle, threads)
            with self._lock:
                self._kept[bundle.digest] = suffix
                self._make_room()
            return suffix

    def _ready(self, digest: str) -> _Suffix | None:
        with self._lock:
            if digest not in self._kept:
                return None
            self._kept.move_to_end(digest)
            return self._kept[digest]

    def _make_room(self) -> None:
        used_bytes = sum(suffix.bytes for suffix in self._kept.values())
        while used_bytes > self._most_bytes and len(self._kept) > 1:
            used_bytes -= self._kept.popitem(last=False)[1].bytes


def _trunk_of(bundle: Bundle) -> TrunkReport:
    if bundle.manifest.trunk is None:
        raise BundleError(f"{bundle.path} has no trunk to share: load it by itself")
    return bundle.manifest.trunk


def _loaded(bundle: Bundle, threads: int | None) -> _Suffix:
    report = _trunk_of(bundle)
    model = suffix_of(bundle.read("model.onnx"), report.tensors)
    # A head is too small for threads, of which each session would have its own.
    is_head = report.cut == "features"
    session = _opened(bundle, model, threads=1 if is_head else threads, one_of_many=is_head)
    values = (*session.get_outputs(), *session.get_inputs())
    n_features = next(value.shape[-1] for value in values if value.name == "features")
    return _Suffix(Half(session), len(model), n_features)


def _opened(bundle: Bundle, model: bytes, *, threads: int | None, one_of_many: bool = False) -> Any:
    try:
        return open_session(model, threads=threads, one_of_many=one_of_many)
    except OnnxError as err:
        raise BundleError(f"{bundle.path}: model.onnx cannot be cut ({err})") from err


def _by_bundle(predictors: Sequence[TrunkPredictor]) -> list[list[int]]:
    """The positions of each bundle's predictors."""
    found: dict[str, list[int]] = {}
    for position, predictor in enumerate(predictors):
        found.setdefault(predictor.bundle.digest, []).append(position)
    return list(found.values())
