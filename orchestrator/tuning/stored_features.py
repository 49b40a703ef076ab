"""Stored features of training examples, to judge them by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.data.examples import Examples
from orchestrator.features.filling import feature_key, search_rows
from orchestrator.features.store import FeatureStore, Float32
from orchestrator.spec.experiment import Experiment


def training_features(
    experiment: Experiment, examples: Examples, store: FeatureStore, *, most: int
) -> tuple[npt.NDArray[np.int64], Float32] | None:
    """Some training examples, evenly drawn, and what an experiment's head reads of them.

    Args:
        experiment: Whose backbone and pooling.
        examples: The data.
        store: Has the features.
        most: How many examples.

    Returns:
        Their rows int64 [n] and features float32 [n, D]; None where nothing is stored.
    """
    key = feature_key(
        experiment.backbone,
        experiment.weights_digest,
        experiment.input,
        experiment.data_digest,
        output=experiment.strategy.pooling,
        view=0,
        precision=experiment.strategy.stored_precision,
    )
    found = store.find(key)
    if found is None:
        return None
    train = examples.indices("train")
    # Rows are ordered by content hash, so any stride is random.
    rows = train[np.linspace(0, len(train) - 1, min(most, len(train))).astype(np.int64)]
    features = found.take(np.searchsorted(search_rows(examples), rows))
    return rows, np.asarray(features, np.float32)
