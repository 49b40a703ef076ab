"""Input drift: how far what a model is asked about lies from what it was trained on. No torch.

Both are compared as features, which is where shifts that matter to the head show (Rabanser,
Günnemann & Lipton, "Failing Loudly", NeurIPS 2019). The distance of an input is the root mean
square, over the features, of its deviation from the training mean in training standard deviations:
a Mahalanobis distance (Lee et al., NeurIPS 2018, section 2.1) with a diagonal covariance and one
Gaussian for all classes, which needs two numbers a feature.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from orchestrator.spec.frozen import Frozen

QUANTILE = 0.95
WINDOW = 256  # inputs

_DEAD = 1e-5  # of the features' median deviation
_DIGITS = 7  # of float32

Floats = npt.NDArray[np.floating]


class DriftBaseline(Frozen):
    """What is usual: the features of training examples, as the bundle's model makes them."""

    n: Annotated[int, Field(ge=1, description="examples")]
    mean: tuple[float, ...] = Field(description="of each feature")
    std: tuple[float, ...] = Field(description="of each feature; 1 where it hardly varies")
    quantile: Annotated[float, Field(gt=0, lt=1)] = Field(description="of the examples' distances")
    distance: Annotated[float, Field(ge=0)] = Field(description="at that quantile")

    def distances(self, embeddings: Floats) -> npt.NDArray[np.float64]:
        """Of each embedding [N, D] from the mean: float64 [N]."""
        scaled = (embeddings - np.asarray(self.mean)) / np.asarray(self.std)
        found: npt.NDArray[np.float64] = np.sqrt(np.mean(np.square(scaled), axis=1))
        return found


def drift_baseline(embeddings: Floats) -> DriftBaseline:
    """The baseline of training examples' embeddings float32 [N, D].

    A feature that hardly varies gets deviation 1, as in the head: any other would rule the
    distance as soon as it moves.
    """
    values = embeddings.astype(np.float64)
    std = values.std(axis=0)
    std = np.where(std > _DEAD * np.median(std), std, 1.0)
    draft = DriftBaseline(
        n=len(values),
        mean=_rounded(values.mean(axis=0)),
        std=_rounded(std),
        quantile=QUANTILE,
        distance=0.0,
    )
    distance = float(np.quantile(draft.distances(values), QUANTILE))
    return draft.model_copy(update={"distance": distance})


@dataclass(frozen=True)
class Drift:
    """How unusual the newest inputs are.

    Attributes:
        n: How many were looked at.
        shift: Distance of their mean from the training mean; of inputs drawn like the training
            examples about 1 / √n.
        far_share: Share of them that lie farther out than the baseline's quantile, 0.05 of usual
            ones.
    """

    n: int
    shift: float
    far_share: float


class DriftGauge:
    """Drift over the newest inputs.

    Args:
        baseline: Of the bundle.
        window: How many inputs count.
    """

    def __init__(self, baseline: DriftBaseline, *, window: int = WINDOW) -> None:
        self._baseline = baseline
        self._newest: deque[npt.NDArray[np.float32]] = deque(maxlen=window)

    def add(self, embeddings: Floats) -> None:
        """Counts inputs in by their embeddings [N, D]; the oldest drop out."""
        self._newest.extend(embeddings.astype(np.float32, copy=False))

    def read(self) -> Drift | None:
        """Drift now; None before the first input."""
        if not self._newest:
            return None
        embeddings = np.stack(self._newest)
        far = self._baseline.distances(embeddings) > self._baseline.distance
        (shift,) = self._baseline.distances(embeddings.mean(axis=0, keepdims=True))
        return Drift(n=len(embeddings), shift=float(shift), far_share=float(far.mean()))


def _rounded(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
