"""A Classifier in training: what a Phase may move."""

from __future__ import annotations

from torch import Tensor, nn

from orchestrator.models.adapters import add_adapters
from orchestrator.models.backbone import Backbone, Prefix, is_adapter
from orchestrator.models.classifier import Classifier
from orchestrator.models.freezing import last_stages, set_trainable
from orchestrator.models.head import Head
from orchestrator.spec.strategy import PartialTuning, StrategyParams
from orchestrator.training.phases import Phase


class Network(Classifier):
    """A Classifier whose stages are frozen and freed phase by phase.

    Args:
        backbone: Its own modules, changed by training; it gets the adapters that `params` name.
        head: Fits the backbone's features.
        params: The strategy.
    """

    def __init__(self, backbone: Backbone, head: Head, params: StrategyParams) -> None:
        super().__init__(backbone, head, params)
        if isinstance(params, PartialTuning) and params.adapter == "lora":
            assert params.lora_rank is not None
            assert params.lora_alpha is not None
            assert params.lora_dropout is not None
            add_adapters(
                backbone,
                last_stages(backbone, params.unfreeze),
                rank=params.lora_rank,
                alpha=params.lora_alpha,
                dropout=params.lora_dropout,
                seed=params.seed,
            )

    def module_for(self, phase: Phase, cut: int | None) -> nn.Module:
        """What runs in a phase: the head on features, the stages after a cut, or everything.

        Args:
            phase: The phase.
            cut: Where its inputs were stored; None for inputs and for pooled features.
        """
        if phase.from_pooled:
            return self.head
        return self if cut is None else _Suffix(self, cut)

    def enter(self, phase: Phase) -> None:
        """Let `phase`'s stages and the head learn, and freeze everything else."""
        set_trainable(self.backbone, set(phase.stage_lrs), batch_norm=phase.batch_norm)
        self.head.requires_grad_(True)

    def trained_tensors(self, phases: tuple[Phase, ...]) -> dict[str, Tensor]:
        """The tensors that these phases can change: the head's, and what moves of the stages.

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
            and (name.startswith("head.") or not self.backbone.adapted or is_adapter(name))
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
