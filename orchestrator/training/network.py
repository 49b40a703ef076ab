"""Backbone and Head as one module, with what a Phase may move."""

from __future__ import annotations

from torch import Tensor, nn

from orchestrator.models.backbone import Backbone
from orchestrator.models.freezing import set_trainable
from orchestrator.models.head import Head
from orchestrator.spec.strategy import Pooling
from orchestrator.training.phases import Phase


class Network(nn.Module):
    """Images float [N, 3, S, S] to logits [N, C]."""

    def __init__(self, backbone: Backbone, head: Head, *, pooling: Pooling) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pooling = pooling

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone.features(images, pooling=self.pooling))
        return logits

    def enter(self, phase: Phase) -> None:
        """Let `phase`'s stages and the head learn, and freeze everything else."""
        set_trainable(self.backbone, set(phase.stage_lrs), batch_norm=phase.batch_norm)
        self.head.requires_grad_(True)

    def trained_tensors(self, phases: tuple[Phase, ...]) -> dict[str, Tensor]:
        """The tensors that these phases can change: the head's, and those of moving stages.

        They are all that a checkpoint needs beside the backbone's pretrained weights.
        """
        stages = {stage for phase in phases for stage in phase.stage_lrs}
        prefixes = ["head.", *(f"backbone.stages.{stage}." for stage in stages)]
        if self.backbone.n_stages in stages:
            prefixes.append("backbone.closing.")
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith(tuple(prefixes))
        }

    def counts(self) -> tuple[int, int]:
        """Trainable and frozen parameters."""
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return trainable, sum(p.numel() for p in self.parameters()) - trainable
