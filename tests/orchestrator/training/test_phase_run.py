"""One phase on one worker: parts of a batch, losses, and features in the place of images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from orchestrator.errors import DivergedError
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.strategy import FeatureExtraction, Full, Partial, Scratch, Strategy
from orchestrator.tasks.losses import Loss
from orchestrator.training.network import Network
from orchestrator.training.phase_run import PhaseRun
from orchestrator.training.phases import Phase, compile_phases
from orchestrator.training.trial import build_network, run_trial
from orchestrator.training.workers import Workers
from tests.orchestrator.training.small_trials import (
    CPU,
    MakeIO,
    MemoryIO,
    experiment_of,
    run_small,
)

ALONE = Workers(rank=0, world_size=1, device=CPU)


def on_images(phase: Phase) -> Phase:
    """The phase, looking at images where it could read features."""
    return replace(phase, same_inputs=False)


@dataclass(frozen=True)
class Trained:
    """A network after one phase, the mean loss of its last epoch, and validation outputs."""

    network: Network
    loss: float
    logits: torch.Tensor


def trained(experiment: Experiment, phase: Phase, io: MemoryIO) -> Trained:
    network = build_network(experiment, io)
    loss = Loss(experiment.task, experiment.strategy, class_weights=None)
    run = PhaseRun(experiment, phase, network, loss, io, ALONE)
    means = [run.train(epoch, phase.epochs)[0] for epoch in range(1, phase.epochs + 1)]
    return Trained(network, means[-1], run.validation_logits())


def test_reading_features_trains_the_head_that_images_would(make_io: MakeIO) -> None:
    strategy = FeatureExtraction(epochs=3, batch_size=4, optimizer="sgd", head_lr=0.05)
    experiment = experiment_of(strategy, make_io.examples)
    (phase,) = compile_phases(strategy, 6)
    read = trained(experiment, phase, make_io(experiment))
    seen = trained(experiment, on_images(phase), make_io(experiment))
    assert read.loss == pytest.approx(seen.loss, rel=1e-4)
    for ours, theirs in zip(
        read.network.head.parameters(), seen.network.head.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(read.logits, seen.logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "strategy",
    [
        FeatureExtraction(epochs=2, batch_size=8, optimizer="sgd", head_lr=0.1),
        Partial(unfreeze=2, warm_up_epochs=1, epochs=1, batch_size=8, optimizer="sgd", mixup=0.5),
    ],
    ids=["features", "images"],
)
def test_a_batch_in_four_parts_takes_the_step_of_the_whole(
    make_io: MakeIO, strategy: Strategy
) -> None:
    whole = experiment_of(strategy, make_io.examples)
    parts = experiment_of(strategy.model_copy(update={"accumulate": 4}), make_io.examples)
    one = run_small(whole, make_io(whole, "whole"))
    four = run_small(parts, make_io(parts, "parts"))
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(four.tensors[name], tensor, rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(one.result.epochs, four.result.epochs, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_specs_weights_focus_and_smoothing(
    make_io: MakeIO, class_weights: str, gamma: float, smoothing: float
) -> None:
    """The first step's loss on all examples, from the formulas (Lin et al., 2017)."""
    strategy = FeatureExtraction.model_validate(
        {
            "epochs": 1,
            "batch_size": 13,
            "class_weights": class_weights,
            "loss": "focal" if gamma else "cross-entropy",
            "label_smoothing": smoothing,
        }
    )
    experiment = experiment_of(strategy, make_io.examples)
    rows = make_io.examples.indices("train")
    truth = make_io.examples.targets()[rows]
    io = make_io(experiment)
    head = build_network(experiment, io).head
    with torch.inference_mode():
        logits = head(torch.from_numpy(io.features(rows))).double().numpy()
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    weights = np.ones(3)
    if class_weights == "balanced":
        weights = compute_class_weight("balanced", classes=np.arange(3), y=truth)
    targets = np.eye(3)[truth] * (1 - smoothing) + smoothing / 3
    expected = (weights * targets * (1 - probs) ** gamma * -np.log(probs)).sum(1).mean()
    assert run_trial(experiment, make_io(experiment)).epochs[0].train_loss == pytest.approx(
        expected, rel=1e-5
    )


def test_a_lone_example_trains_without_statistics_of_its_own(make_io: MakeIO) -> None:
    """Batch norm cannot train on one value a channel, as a last batch of one may be."""
    strategy = Scratch(epochs=1, batch_size=12, augment="none")
    experiment = experiment_of(strategy, make_io.examples)
    io = make_io(experiment)
    assert len(io.examples.indices("train")) % 12 == 1
    (phase,) = compile_phases(strategy, 6)
    found = trained(experiment, phase, io)
    assert np.isfinite(found.loss)
    counted = {
        int(tensor)
        for name, tensor in io.used.state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    assert counted == {1}


def test_every_parameter_is_clipped_together(make_io: MakeIO) -> None:
    """With plain SGD at rate 1 and one step, the weights move by the clipped norm at most."""
    strategy = Full(
        warm_up_epochs=0,
        epochs=1,
        batch_size=13,
        optimizer="sgd",
        schedule="constant",
        thirds=(1, 1, 1),
        backbone_lr=1,
        head_lr=1,
        weight_decay=0,
        clip_norm=0.01,
    )
    experiment = experiment_of(strategy, make_io.examples)
    before = make_io(experiment)
    initial = build_network(experiment, before)
    (phase,) = compile_phases(strategy, 6)
    found = trained(experiment, phase, make_io(experiment))
    pairs = zip(found.network.parameters(), initial.parameters(), strict=True)
    moved = torch.cat([(new.detach() - old.detach()).flatten() for new, old in pairs]).norm()
    # Nesterov momentum makes the first step 1 + 0.9 gradients long.
    assert float(moved) == pytest.approx(0.01 * 1.9, rel=1e-3)


def test_gradients_whose_norm_is_infinite_in_every_step_are_told(make_io: MakeIO) -> None:
    """Clipping would make zeros of them, and an epoch that learns nothing would look like one."""
    strategy = FeatureExtraction(epochs=1, batch_size=4, clip_norm=1.0)
    experiment = experiment_of(strategy, make_io.examples)
    (phase,) = compile_phases(strategy, 6)
    io = make_io(experiment)
    network = build_network(experiment, io)
    loss = Loss(experiment.task, strategy, class_weights=None)
    run = PhaseRun(experiment, phase, network, loss, io, ALONE)
    weight = next(network.head.layers.parameters())
    handle = weight.register_hook(lambda gradient: torch.full_like(gradient, 1e30))
    with pytest.raises(
        DivergedError, match="gradients had an infinite norm in every step of epoch 1"
    ):
        run.train(1, 1)
    handle.remove()
    run.train(2, 2)
