"""A sweep before it runs: its data read and audited, its folder found, its experiments made."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.data.audit import Audit
from orchestrator.data.examples import Examples
from orchestrator.data.preparing import prepare_data
from orchestrator.data.tokens import ensure_tokens
from orchestrator.features.filling import search_rows
from orchestrator.features.store import FeatureStore
from orchestrator.runtime.folders import SweepFolder
from orchestrator.runtime.process_cache import initial_weights_digest
from orchestrator.runtime.trial_run import VERSIONED
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.parts import BackboneSpec, TaskSpec, TextContract, modality_of
from orchestrator.spec.sweep import SweepSpec
from orchestrator.spec.text_encoders import encoder_tokenizer
from orchestrator.tuning.experiments import ExperimentFactory, backbones_of
from orchestrator.tuning.progress import Progress, Silent
from orchestrator.tuning.sharing import Shared, shared_work, store_budget


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep whose data is ready and whose folder is known."""

    spec: SweepSpec
    folder: SweepFolder
    examples: Examples
    audit: Audit

    @property
    def storage(self) -> Path:
        """Where all sweeps of this spec's storage lie."""
        return Path(self.spec.storage)

    @property
    def store(self) -> FeatureStore:
        """The features that sweeps share."""
        return FeatureStore(self.storage / "features")

    @property
    def task(self) -> TaskSpec:
        """What is predicted."""
        return TaskSpec(kind=self.spec.task, labels=self.examples.labels)

    def shared(self, factory: ExperimentFactory) -> list[Shared]:
        """What this sweep's trials share.

        Raises:
            CapacityError: The features do not fit the store.
        """
        return shared_work(
            self.spec,
            factory,
            images=len(search_rows(self.examples)),
            budget_bytes=store_budget(self.spec, self.store),
        )

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
        )

    def description(self) -> dict[str, Any]:
        """The content of `sweep.json`; the time of creation stays what it was."""
        return {
            "name": self.spec.name,
            "digest": self.spec.identity(self.examples.digest),
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

    Args:
        spec: The sweep.
        fresh: Take a new folder even if this sweep was run before.
        progress: Told about the data.

    Raises:
        DataError: The data cannot be used.
    """
    told = progress or Silent()
    prepared = prepare_data(
        spec.data,
        task=spec.task,
        seed=spec.seed,
        cache=Path(spec.storage) / "data",
        progress=lambda done, total: told.count(f"{modality_of(spec.task)}s checked", done, total),
    )
    for line in prepared.audit.lines():
        told.say(f"data: {line}")
    name = f"{spec.name}-{spec.identity(prepared.examples.digest)[:8]}"
    root = _newest(Path(spec.storage), name, fresh=fresh)
    return PreparedSweep(spec, SweepFolder(root), prepared.examples, prepared.audit)


def tokenize(examples: Examples, backbones: Iterable[BackboneSpec], progress: Progress) -> None:
    """Turn the texts into the tokens of each encoder, once a tokenizer; images are left alone."""
    for backbone in backbones:
        contract = facts_of(backbone).input
        if isinstance(contract, TextContract):
            ensure_tokens(
                examples,
                encoder_tokenizer(backbone),
                contract.tokenizer,
                progress=lambda done, total: progress.count("texts tokenized", done, total),
            )


def _by_split(classes: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Counts by label and split, turned round."""
    splits = ("train", "validation", "test")
    return {
        split: {label: counts.get(split, 0) for label, counts in classes.items()}
        for split in splits
    }


def _newest(storage: Path, name: str, *, fresh: bool) -> Path:
    """The folder of a sweep: the newest of `name`, `name-2`, …, or with `fresh` the next one."""
    taken = [storage / name] if (storage / name).exists() else []
    while taken and (following := storage / f"{name}-{len(taken) + 1}").exists():
        taken.append(following)
    if not taken:
        return storage / name
    return storage / f"{name}-{len(taken) + 1}" if fresh else taken[-1]
