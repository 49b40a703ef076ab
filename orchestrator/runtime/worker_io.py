"""The surroundings of one worker: data, features and weights from the sweep's folder."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.data.pieces import pieces_of
from orchestrator.errors import IntegrityError
from orchestrator.features.filling import feature_key, search_rows
from orchestrator.features.store import FeatureKey, Features, FeatureStore, Float32, Values
from orchestrator.models.backbone import Backbone, Output
from orchestrator.models.label_embeddings import LabelEmbeddings
from orchestrator.runtime.folders import SweepFolder
from orchestrator.runtime.process_cache import open_examples, pristine_backbone
from orchestrator.runtime.text_embedding import TextNeed, texts_folder
from orchestrator.spec import mirror
from orchestrator.spec.experiment import DIGITS, HEAD, Experiment
from orchestrator.spec.record import EpochRow, PhaseRow
from orchestrator.spec.strategy import Augment
from orchestrator.training.checkpoint import read_checkpoint
from orchestrator.training.io import Decision

STEP_INTERVAL_S = 2.0


class Reporter(Protocol):
    """Whom a worker tells what happens."""

    def report(self, row: EpochRow, objective_best: float) -> tuple[Decision, str]:
        """An epoch is done; every rank calls it equally often."""

    def note(self, text: str) -> None:
        """Something worth showing happens."""


class WorkerIO:
    """A `TrialIO` on the files of a sweep."""

    def __init__(
        self,
        experiment: Experiment,
        folder: SweepFolder,
        *,
        store: FeatureStore,
        reporter: Reporter,
        device: torch.device,
        threads: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.device = device
        self.rank = rank
        self.world_size = world_size
        self.threads = threads
        self.checkpoints: Path = folder.trial(experiment.id).checkpoints
        self.examples = open_examples(folder / "data")
        self._experiment, self._folder = experiment, folder
        self._store = store
        self._reporter = reporter
        self._rows = search_rows(pieces_of(self.examples, experiment.input))
        self._found: dict[FeatureKey, Features] = {}
        self._last_step_s = 0.0

    def backbone(self) -> Backbone:
        """A copy of the pristine backbone, which this process keeps for the next trial.

        Raises:
            IntegrityError: The weights are not those that the experiment names.
        """
        return copy.deepcopy(self.load())

    def load(self) -> Backbone:
        """The pristine backbone itself, which nobody may change; errors as in `backbone`."""
        return pristine_backbone(
            self._experiment.backbone,
            size=self._experiment.input.size,
            expected_digest=self._experiment.weights_digest,
            seed=self._experiment.strategy.seed,
        )

    def parent_head(self) -> dict[str, Tensor]:
        """The head that the experiment starts from, at its best epoch.

        Raises:
            IntegrityError: It is missing, damaged, or another experiment's.
        """
        digest = self._experiment.parents[HEAD]
        folder = self._folder.parent(digest[:DIGITS])
        record = folder.record()
        checkpoint = (
            read_checkpoint(folder.root / record.checkpoint)
            if record is not None and record.checkpoint
            else None
        )
        if checkpoint is None or checkpoint.state["experiment"] != digest:
            raise IntegrityError(
                f"the head {mirror.location_of(folder.root)} that this trial starts from is "
                "missing or damaged. Delete that folder and run the same command again: the head "
                "is trained anew"
            )
        return {
            name.removeprefix("head."): tensor
            for name, tensor in checkpoint.weights.items()
            if name.startswith("head.")
        }

    def label_embeddings(self) -> LabelEmbeddings:
        """What the labels' texts say; made and kept where the sweep has not made them.

        Raises:
            IntegrityError: The weights are not those that the experiment names.
        """
        need = TextNeed.of(self._experiment)
        return need.ensured(texts_folder(self._store), device=str(self.device))

    def features(
        self, rows: npt.NDArray[np.int64], view: int = 0, augment: Augment = "none"
    ) -> Float32:
        """Stored features of training and validation examples.

        Raises:
            IntegrityError: They are not stored, or damaged.
        """
        return self._take(rows, self._key(self._experiment.strategy.pooling, view, augment))

    def stores(self, cut: int, augment: Augment = "none") -> bool:
        """Whether every view that the trial reads is stored."""
        return all(
            self._store.find(self._key(cut, *view)) is not None
            for view in self._experiment.strategy.stored_views(augment)
        )

    def activations(
        self, rows: npt.NDArray[np.int64], cut: int, view: int = 0, augment: Augment = "none"
    ) -> Values:
        """Stored activations of training and validation examples.

        Raises:
            IntegrityError: They are not stored, or damaged.
        """
        return self._take(rows, self._key(cut, view, augment))

    def _key(self, output: Output, view: int, augment: Augment) -> FeatureKey:
        return feature_key(
            self._experiment.backbone,
            self._experiment.weights_digest,
            self._experiment.input,
            self._experiment.data_digest,
            output=output,
            view=view,
            augment=augment,
            precision=self._experiment.strategy.stored_precision,
        )

    def _take(self, rows: npt.NDArray[np.int64], key: FeatureKey) -> Values:
        if key not in self._found:
            found = self._store.find(key)
            if found is None:
                raise IntegrityError(
                    f"the feature store {mirror.location_of(self._store.root)} has no {key.cut} "
                    f"features of {key.backbone}. Run the same command again and they are computed"
                )
            self._found[key] = found
        at = np.searchsorted(self._rows, rows)
        assert np.array_equal(self._rows[at], rows), "a test example has no features"
        return self._found[key].take(at)

    def on_phase(self, phase: PhaseRow) -> None:
        """Show the groups with rates and counts."""
        if self.rank == 0:
            self._reporter.note(phase_text(self._experiment, phase))

    def on_step(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> None:
        """Show the position now and then."""
        now_s = time.monotonic()
        if now_s - self._last_step_s >= STEP_INTERVAL_S:
            self._last_step_s = now_s
            self._reporter.note(f"epoch {epoch}/{n_epochs}, step {step}/{n_steps}")

    def report(self, row: EpochRow, objective_best: float) -> tuple[Decision, str]:
        """Pass the epoch on and bring the answer back."""
        return self._reporter.report(row, objective_best)


def phase_text(experiment: Experiment, phase: PhaseRow) -> str:
    """One line: what a phase trains at which rates, and how much of the model that is."""
    merged: dict[str, tuple[float, int]] = {}
    for group in phase.groups:
        name = group.name.removesuffix(" (norms, biases)")
        merged[name] = (group.lr, merged.get(name, (0.0, 0))[1] + group.parameters)
    groups = " · ".join(f"{name} lr {lr:.3g} ({count:,})" for name, (lr, count) in merged.items())
    return (
        f"phase {phase.name}: {phase.epochs} epochs, {groups}; trainable {phase.trainable:,}, "
        f"frozen {phase.frozen:,}, total {phase.total:,}"
    )
