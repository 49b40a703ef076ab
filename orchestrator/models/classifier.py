"""The Classifier: a Backbone and a Head as one module, from inputs to logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator.models.backbone import Backbone, Inputs, Prefix
from orchestrator.models.head import Head, build_head
from orchestrator.models.tokens import Tokens
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import by_position
from orchestrator.spec.strategy import StrategyParams


@dataclass(frozen=True)
class Outputs:
    """What a Classifier makes of N inputs, each the mean over the views that are averaged.

    Attributes:
        logits: [N, C], or [N, P, C] of a head on positions.
        features: float32 [N, D]; what the head reads, or its mean over positions.
    """

    logits: Tensor
    features: Tensor


class Classifier(nn.Module):
    """Prepared inputs to logits [N, C]; tensors are named `backbone.…` and `head.…`.

    With pooling `none` the head works on every position: logits are [N, P, C].

    In eval mode the logits are the mean over the first `predict_views` views of an image, so that
    validation, test and serving all answer alike; in train mode an image is seen as it comes. The
    views of a text are other tokens: whoever prepares them averages their logits.

    Args:
        backbone: Its own modules, changed by training.
        head: Fits the backbone's features.
        params: `pooling` and `predict_views` are read.
    """

    def __init__(self, backbone: Backbone, head: Head, params: StrategyParams) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pooling = params.pooling
        self.predict_views = params.predict_views

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits of inputs."""
        if self.training:
            logits: Tensor = self.head(self.backbone.features(inputs, pooling=self.pooling))
            return logits
        return self.outputs(inputs).logits

    def outputs(self, inputs: Inputs) -> Outputs:
        """Logits and features of inputs, as in eval mode."""
        views = self.averaged_views(inputs)
        features = [self.backbone.features(view, self.pooling) for view in views]
        return self.outputs_from(features, inputs)

    def outputs_from(self, features: list[Tensor], inputs: Inputs) -> Outputs:
        """As `outputs`, from the features of every view of inputs."""
        logits = [self.head(seen) for seen in features]
        if self.pooling == "none":
            assert isinstance(inputs, Tokens), "only texts have tokens to answer for"
            features = [mean_over_tokens(seen, inputs.mask) for seen in features]
        return Outputs(mean_over_views(logits), mean_over_views(features))

    def averaged_views(self, inputs: Inputs) -> list[Inputs]:
        """The views of inputs whose logits are averaged here."""
        if self.predict_views == 1 or not isinstance(inputs, Tensor):
            return [inputs]
        return [turned(inputs, view) for view in range(self.predict_views)]

    def forward_from(self, prefix: Prefix, cut: int) -> Tensor:
        """Logits [N, C] of one view of inputs, from what stages 0 … `cut` made of it."""
        features = self.backbone.features_from(
            prefix.activations, cut, self.pooling, earlier=prefix.pooled
        )
        logits: Tensor = self.head(features)
        return logits


def build_classifier_head(backbone: Backbone, params: StrategyParams, *, n_outputs: int) -> Head:
    """A new head for a backbone's features, its initialisation decided by `params.seed`."""
    return build_head(
        params,
        n_features=backbone.feature_width(params.pooling),
        n_outputs=n_outputs,
        seed=params.seed,
    )


def mean_over_views(views: list[Tensor]) -> Tensor:
    """The mean of each example's values over its views: [N, C] of V times [N, C]."""
    return torch.stack(views).mean(0) if len(views) > 1 else views[0]


def mean_over_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of each text's states over its tokens: [N, D] of [N, L, D]."""
    present = mask[..., None]
    return torch.where(present, states, 0).sum(1) / present.sum(1).clamp(min=1)


def flat_width(experiment: Experiment) -> int:
    """Numbers that a network says of one input; of a shorter one, the last are zero."""
    n_outputs = len(experiment.task.outputs)
    return n_outputs * experiment.input.size if by_position(experiment.task.kind) else n_outputs


def flat(logits: Tensor, width: int) -> Tensor:
    """Logits of inputs of any length as rows of one: [N, width]."""
    rows = logits.flatten(1)
    return nn.functional.pad(rows, (0, width - rows.shape[1]))


def turned(images: Tensor, view: int) -> Tensor:
    """`data.transforms.dihedral` for tensors [N, C, S, S]; the memory format stays."""
    if view & 4:
        images = images.transpose(2, 3)
    axes = [axis for axis, bit in ((2, 2), (3, 1)) if view & bit]
    return images.flip(axes) if axes else images
