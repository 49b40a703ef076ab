"""A checkpoint becomes the network that wrote it."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from orchestrator.errors import IntegrityError
from orchestrator.spec.strategy import Partial
from orchestrator.training.checkpoint import read_checkpoint
from orchestrator.training.evaluation import predict_split, trained_network
from orchestrator.training.trial import run_trial
from tests.orchestrator.training.small_trials import CPU, MakeIO, experiment_of, initial_backbone


def test_predictions_of_a_checkpoint_are_those_of_its_epoch(make_io: MakeIO) -> None:
    strategy = Partial(
        unfreeze=2, warm_up_epochs=1, epochs=1, batch_size=4, dropout=0.5, batch_norm="adapt"
    )
    experiment = experiment_of(strategy, make_io.examples)
    io = make_io(experiment)
    result = run_trial(experiment, io)
    folder = io.checkpoints / f"epoch-{result.best_epoch:04d}"
    network = trained_network(
        experiment, copy.deepcopy(initial_backbone(experiment.backbone.name)), folder
    )
    assert not any(module.training for module in network.modules())
    seen: list[tuple[int, int]] = []
    rows = io.examples.indices("validation")
    probs = predict_split(
        network,
        experiment,
        io.examples,
        "validation",
        device=CPU,
        threads=2,
        progress=lambda done, of: seen.append((done, of)),
    )
    found = read_checkpoint(folder)
    assert found is not None
    np.testing.assert_allclose(probs, found.validation["probs"].numpy(), atol=1e-5)
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-6)
    assert seen[-1] == (len(rows), len(rows))


def test_a_missing_checkpoint_is_refused_by_its_path(make_io: MakeIO) -> None:
    experiment = experiment_of(Partial(unfreeze=1), make_io.examples)
    io = make_io(experiment)
    with pytest.raises(IntegrityError, match="epoch-0009"):
        trained_network(experiment, io.used, io.checkpoints / "epoch-0009")
