"""A Classifier in training: what a Phase may move."""

from __future__ import annotations

from torch import Tensor, nn

from orchestrator.models.backbone import Prefix
from orchestrator.models.classifier import Classifier
from orchestrator.models.freezing import set_trainable
from orchestrator.training.phases import Phase


class Network(Classifier):
    """A Classifier whose stages are frozen and freed phase by phase."""

    def module_for(self, phase: Phase, cut: int | None) -> nn.Module:
        """What runs in a phase: the head on features, the stages after a cut, or everything.

        Args:
            phase: The phase.
            cut: Where its inputs were stored; None for images.
        """
        if phase.from_features:
            return self.head
        return self if cut is None else _Suffix(self, cut)

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


class _Suffix(nn.Module):
    """A network from one of its cuts on."""

    def __init__(self, network: Network, cut: int) -> None:
        super().__init__()
        self._network, self._cut = network, cut

    def forward(self, prefix: Prefix) -> Tensor:
        return self._network.forward_from(prefix, self._cut)
