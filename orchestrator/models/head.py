"""The Head: from features to the outputs of our task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.models.label_embeddings import LabelEmbeddings
from orchestrator.spec.strategy import StrategyParams

CLIP = 6.0
DEAD = 1e-5  # of the columns' median deviation
_ROWS_AT_ONCE = 8192


class Standardize(nn.Module):
    """Features to zero mean and unit variance by column; the identity until fitted.

    `mean` and `scale` are buffers, so they travel with the head's weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Takes mean and population standard deviation from training features.

        Sums are float64 and taken in two passes over blocks of rows. A column is constant, and
        gets scale 1, when its variance is within rounding of zero by scikit-learn's bound
        (`sklearn.preprocessing.StandardScaler`; Chan et al., 1983), or next to nothing beside the
        other columns': some encoders have dead dimensions of 1e-33, and the gradient of what
        divides by such a scale is infinite.

        Args:
            features: float `[N, D]`, N at least 1.
        """
        n = len(features)
        assert n > 0, "statistics need at least one row"
        blocks = torch.split(features, _ROWS_AT_ONCE)
        mean = sum_of([block.double().sum(0) for block in blocks]) / n
        variance = sum_of([(block.double() - mean).square().sum(0) for block in blocks]) / n
        eps = torch.finfo(torch.float64).eps
        constant = variance <= n * eps * variance + (n * mean * eps).square()
        constant |= variance < DEAD**2 * variance.median()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, 1.0, variance.sqrt()))

    def forward(self, features: Tensor) -> Tensor:
        """Features `[..., D]`, standardised and cut at CLIP standard deviations.

        A column that is almost constant on the training features would otherwise rule the head as
        soon as the backbone moves.
        """
        return ((features - self.mean) / self.scale).clamp(-CLIP, CLIP)


class UnitLength(nn.Module):
    """Features scaled to length one, as a CLIP compares them with texts."""

    def forward(self, features: Tensor) -> Tensor:
        """Features `[N, D]`, each row of length one."""
        return F.normalize(features, dim=1)


def sum_of(tensors: list[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(tensors).sum(0)


class Head(nn.Module):
    """Scaled features through one linear layer, or through one hidden layer as well.

    Attributes:
        standardize: How features are scaled: by column, or to length one for a head of texts.
        layers: The rest.
    """

    def __init__(self, standardize: Standardize | UnitLength, layers: nn.Sequential) -> None:
        super().__init__()
        self.standardize = standardize
        self.layers = layers

    @torch.no_grad()
    def start_from(self, found: LabelEmbeddings) -> None:
        """Let the one linear layer say what the labels' texts do."""
        linear = self.layers[-1]
        assert isinstance(linear, nn.Linear)
        assert linear.weight.shape == found.directions.shape
        linear.weight.copy_(found.weight)
        linear.bias.fill_(found.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features float32 `[..., D]` to outputs `[..., n_outputs]`."""
        outputs: Tensor = self.layers(self.standardize(features))
        return outputs


def build_head(params: StrategyParams, *, n_features: int, n_outputs: int, seed: int) -> Head:
    """A new head, its initialisation decided by `seed` alone.

    Args:
        params: `head`, `hidden`, `dropout` and `feature_dropout` are read.
        n_features: D of the features.
        n_outputs: Outputs of the task.
        seed: Of the initialisation; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA too
        match params.head:
            case "linear" | "text":
                layers = [nn.Dropout(params.dropout), nn.Linear(n_features, n_outputs)]
            case "mlp":
                layers = [
                    nn.Dropout(params.feature_dropout),
                    nn.Linear(n_features, params.hidden),
                    nn.ReLU(),
                    nn.Dropout(params.dropout),
                    nn.Linear(params.hidden, n_outputs),
                ]
        scaling = UnitLength() if params.head == "text" else Standardize(n_features)
        return Head(scaling, nn.Sequential(*layers))
