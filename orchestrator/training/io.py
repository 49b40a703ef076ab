"""What a trial is given, and whom it tells: the border between training and where it runs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.data.examples import Examples
from orchestrator.features.store import Float32, Values
from orchestrator.models.backbone import Backbone
from orchestrator.models.label_embeddings import LabelEmbeddings
from orchestrator.spec.record import EpochRow, PhaseRow
from orchestrator.spec.strategy import Augment


class Decision(Enum):
    """What a trial does after an epoch: go on, or end itself."""

    CONTINUE = "continue"
    STOP = "stop"


class TrialIO(Protocol):
    """The surroundings of one worker of one trial.

    `checkpoints` is a folder that all workers see; rank 0 writes to it.
    """

    device: torch.device
    rank: int
    world_size: int
    threads: int
    checkpoints: Path
    examples: Examples

    def backbone(self) -> Backbone:
        """The experiment's backbone with its initial weights, for this trial to change."""

    def parent_head(self) -> dict[str, Tensor]:
        """The tensors of the head that the experiment starts from, where it names one."""

    def label_embeddings(self) -> LabelEmbeddings:
        """What the labels' texts say, where the experiment's head starts from them."""

    def features(
        self, rows: npt.NDArray[np.int64], view: int = 0, augment: Augment = "none"
    ) -> Float32:
        """Stored features of the chosen examples, one fixed view of them: float32 [n, D]."""

    def stores(self, cut: int, augment: Augment = "none") -> bool:
        """Whether the activations after a stage are stored, in every view the trial reads."""

    def activations(
        self, rows: npt.NDArray[np.int64], cut: int, view: int = 0, augment: Augment = "none"
    ) -> Values:
        """Stored activations of the chosen examples, one fixed view of them: [n, *shape]."""

    def on_phase(self, phase: PhaseRow) -> None:
        """A phase begins."""

    def on_step(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> None:
        """A training step is done; called by rank 0 for each."""

    def report(self, row: EpochRow, objective_best: float) -> tuple[Decision, str]:
        """An epoch and its checkpoint are done.

        Every rank calls this equally often.

        Returns:
            What rank 0 shall do, and who says so.
        """
