"""A sweep before it runs: its data read and audited, its folder found, its experiments made."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.data.audit import Audit
from orchestrator.data.corpus import Corpus
from orchestrator.data.examples import Examples
from orchestrator.data.pieces import pieces_of
from orchestrator.data.preparing import prepare_data
from orchestrator.features.filling import search_rows
from orchestrator.features.room import leased_bytes
from orchestrator.features.store import FeatureStore
from orchestrator.runtime.feature_filling import FeatureNeed
from orchestrator.runtime.folders import SweepFolder
from orchestrator.runtime.process_cache import initial_weights_digest
from orchestrator.runtime.trial_run import VERSIONED
from orchestrator.spec import mirror
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.parts import TaskSpec, modality_of
from orchestrator.spec.pretraining import Pretraining
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tuning.adapting import Adaptation, adaptation_of, corpus_for, unique
from orchestrator.tuning.experiments import ExperimentFactory, backbones_of, block_backbones
from orchestrator.tuning.plan import CostBook
from orchestrator.tuning.progress import Progress, Silent
from orchestrator.tuning.sharing import Shared, shared_work, store_budget
from orchestrator.tuning.tokenizing import long_texts, readings_of, tokenize


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep whose data is ready and whose folder is known."""

    spec: SweepSpec
    folder: SweepFolder
    examples: Examples
    audit: Audit
    corpora: Mapping[Pretraining, Corpus] = field(default_factory=dict)

    @property
    def storage(self) -> Path:
        """Where this node has the sweeps of this spec's storage."""
        return mirror.local_path(self.spec.storage)

    @property
    def store(self) -> FeatureStore:
        """The features that sweeps share."""
        return FeatureStore(self.storage / "features")

    @property
    def task(self) -> TaskSpec:
        """What is predicted."""
        return TaskSpec(kind=self.spec.task, labels=self.examples.labels)

    def tokenized(self, progress: Progress) -> PreparedSweep:
        """The same with its texts tokenized; what of them is too long is said, and in the audit."""
        tokenize(self.examples, backbones_of(self.spec), progress)
        found = long_texts(self.examples, readings_of(self.spec))
        for finding in found:
            progress.say(f"data: {finding}")
        return replace(self, audit=self.audit.with_more(found))

    def shared(self, factory: ExperimentFactory) -> list[Shared]:
        """What this sweep's trials share.

        Raises:
            CapacityError: The features do not fit the store.
        """

        def room(needs: Collection[FeatureNeed]) -> float:
            ours = [need.key(self.examples) for need in needs]
            return store_budget(self.spec, self.store) - leased_bytes(self.store, besides=ours)

        found = shared_work(
            self.spec,
            factory,
            images=lambda contract: len(search_rows(pieces_of(self.examples, contract))),
            forward_s=CostBook.of(self.spec, self.storage).forward_s,
            room=room,
        )
        return [
            replace(work, there=self.store.is_finished(work.need.key(self.examples)))
            for work in found
        ]

    def factory(self) -> ExperimentFactory:
        """Makes this sweep's experiments; loads every backbone once for its digest."""
        return ExperimentFactory(
            task=self.task,
            data_digest=self.examples.digest,
            objective=self.spec.objective,
            weights_digests={
                backbone: initial_weights_digest(backbone, size=facts_of(backbone).input.size)
                for backbone in backbones_of(self.spec)
            },
            adapted={(a.backbone, a.pretraining): a.adapted() for a in self.adaptations()},
        )

    def adaptations(self) -> list[Adaptation]:
        """The pretrainings that its blocks ask for, each once; loads their backbones."""
        return unique(
            adaptation_of(block.pretraining, backbone, corpus, storage=self.storage)
            for block in self.spec.search
            if block.pretraining is not None
            for corpus in [self.corpora[block.pretraining]]
            for backbone in block_backbones(block)
        )

    def identity(self) -> str:
        """The sweep's digest."""
        return identity_of(self.spec, self.examples, self.corpora)

    def description(self) -> dict[str, Any]:
        """The content of `sweep.json`; the time of creation stays what it was."""
        return {
            "name": self.spec.name,
            "digest": self.identity(),
            "created_at": (self.folder.read("sweep.json") or {}).get("created_at")
            or datetime.now(UTC).isoformat(timespec="seconds"),
            "task": self.spec.task,
            "labels": list(self.examples.labels),
            "spec": self.spec.to_json(),
            "data": {
                "digest": self.examples.digest,
                "counts": _by_split(self.audit.classes),
                "audit": [finding.to_json() for finding in self.audit.faults],
            },
            "environment": {
                "host": socket.gethostname(),
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
                **{name: version(name) for name in VERSIONED},
            },
        }


def prepare_sweep(
    spec: SweepSpec, *, fresh: bool = False, progress: Progress | None = None
) -> PreparedSweep:
    """Read and audit the data, and find the sweep's folder.

    What is read stays on this node: at a URI only what trials need of it is sent, with the sweep.

    Args:
        spec: The sweep.
        fresh: Take a new folder even if this sweep was run before.
        progress: Told about the data.

    Raises:
        DataError: The data cannot be used.
        StorageError: The storage cannot be written to.
    """
    told = progress or Silent()
    storage = mirror.open_storage(spec.storage)
    prepared = prepare_data(
        spec.data,
        task=spec.task,
        seed=spec.seed,
        cache=storage / "data",
        progress=lambda done, total: told.count(f"{modality_of(spec.task)}s checked", done, total),
    )
    for line in prepared.audit.lines():
        told.say(f"data: {line}")
    corpora = {
        block.pretraining: corpus_for(
            block.pretraining,
            block_backbones(block),
            examples=prepared.examples,
            cache=storage / "data",
            progress=told,
        )
        for block in spec.search
        if block.pretraining is not None
    }
    name = f"{spec.name}-{identity_of(spec, prepared.examples, corpora)[:8]}"
    root = _newest(storage, name, fresh=fresh)
    return PreparedSweep(spec, SweepFolder(root), prepared.examples, prepared.audit, corpora)


def identity_of(spec: SweepSpec, examples: Examples, corpora: Mapping[Pretraining, Corpus]) -> str:
    """The digest of what a sweep searches on what data."""
    digests = {
        pretraining.corpus: corpus.digest
        for pretraining, corpus in corpora.items()
        if pretraining.corpus is not None
    }
    return spec.identity(examples.digest, digests)


def _by_split(classes: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Counts by label and split, turned round."""
    splits = ("train", "validation", "test")
    return {
        split: {label: counts.get(split, 0) for label, counts in classes.items()}
        for split in splits
    }


def _newest(storage: Path, name: str, *, fresh: bool) -> Path:
    """The folder of a sweep: the newest of `name`, `name-2`, …, or with `fresh` the next one."""
    there = mirror.names(storage)
    taken = [storage / name] if name in there else []
    while taken and (following := f"{name}-{len(taken) + 1}") in there:
        taken.append(storage / following)
    if not taken:
        return storage / name
    return storage / f"{name}-{len(taken) + 1}" if fresh else taken[-1]
