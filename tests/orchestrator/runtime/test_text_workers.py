"""Texts on Ray Train workers: windows of uneven lengths are shared out, and nothing changes."""

from pathlib import Path

import numpy as np
import pytest

from orchestrator.runtime.cluster import Cluster
from tests.orchestrator.runtime.test_workers import assert_on_two_as_on_one, probs, run
from tests.orchestrator.text_material import write_encoder, write_texts

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.timeout(600)
def test_two_workers_fine_tune_an_encoder_as_one_does(cluster: Cluster, tmp_path: Path) -> None:
    write_texts(tmp_path / "train", 21, seed=0)
    write_encoder(tmp_path / "tiny", dropout=0.0)
    tuned = {"strategy": "full", "backbone": str(tmp_path / "tiny"), "backbone_lr": 1e-3}

    def raw(name: str, **changes: object) -> dict[str, object]:
        return {
            "name": "texts",
            "task": "text-classification",
            "data": {"train": str(tmp_path / "train")},
            "defaults": {"max_length": 32, "epochs": 2, "batch_size": 16, "accumulate": 2},
            "search": [{**tuned, "warm_up_epochs": 1, "predict_views": 2}],
            "budget": {"trials": 1},
            "tuner": {"scheduler": "none"},
            "storage": str(tmp_path / name),
            **changes,
        }

    folder1, one = run(raw("one"))
    folder2, two = run(raw("two", workers={"per_trial": 2, "cpus": 1}))
    assert_on_two_as_on_one(two, one)
    assert np.ptp(probs(folder1, one), axis=0).max() > 1e-2, "its texts are told apart"
    np.testing.assert_allclose(probs(folder1, one), probs(folder2, two), atol=5e-3)
