"""The average of the weights is the textbook's, and swaps in and out without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator.spec.strategy import FeatureExtraction, Partial
from orchestrator.tasks.task import build_task
from orchestrator.training.averaging import WeightAverage
from tests.orchestrator.training.small_trials import MakeIO, experiment_of, run_small


def walked(decay: float, n_steps: int) -> tuple[nn.Linear, WeightAverage, list[torch.Tensor]]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    average = WeightAverage(list(layer.parameters()), decay)
    path = [layer.weight.detach().clone()]
    for step in range(1, n_steps + 1):
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))
        average.update(step)
        path.append(layer.weight.detach().clone())
    return layer, average, path


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_the_recurrence(decay: float) -> None:
    layer, average, path = walked(decay, 30)
    expected = path[0].double()
    for step, weights in enumerate(path[1:], start=1):
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weights.double()
    with average.applied():
        torch.testing.assert_close(layer.weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(layer.weight, path[-1])


def test_what_is_kept_comes_back_and_goes_on_alike() -> None:
    layer, average, _ = walked(0.9, 5)
    other = nn.Linear(3, 2)
    last = {name: tensor.clone() for name, tensor in average.last().items()}
    with average.applied():
        other.load_state_dict(layer.state_dict())
    again = WeightAverage(list(other.parameters()), 0.9)
    again.restore(last)
    for each, which in ((average, layer), (again, other)):
        with torch.no_grad():
            which.weight.mul_(1.5)
        each.update(6)
        each.apply()
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


def test_a_trial_validates_and_keeps_the_average(make_io: MakeIO) -> None:
    """Its outputs are those of the checkpoint, which are not those of the last step."""
    outcomes = {}
    for decay in (0.0, 0.95):
        strategy = FeatureExtraction(epochs=3, batch_size=4, head_lr=0.03, ema_decay=decay)
        experiment = experiment_of(strategy, make_io.examples)
        io = make_io(experiment, f"decay-{decay}")
        outcome = run_small(experiment, io)
        best = outcome.result.epochs[(outcome.result.best_epoch or 0) - 1]
        targets = io.examples.targets()[io.examples.indices("validation")]
        told = build_task(experiment.task).metrics(outcome.probs.astype("float64"), targets)
        assert best.validation == pytest.approx(told, rel=1e-3)
        outcomes[decay] = outcome
    assert outcomes[0.0].result.epochs[0].train_loss == outcomes[0.95].result.epochs[0].train_loss
    weights = [outcomes[decay].tensors["head.layers.1.weight"] for decay in (0.0, 0.95)]
    assert not torch.equal(*weights)


def test_stored_and_recomputed_prefixes_train_alike(make_io: MakeIO) -> None:
    strategy = Partial(
        unfreeze=2, warm_up_epochs=1, epochs=2, batch_size=4, augment="none", views=4,
        predict_views=2, optimizer="sgd", ema_decay=0.8, stored_precision="fp32",
    )  # fmt: skip
    experiment = experiment_of(strategy, make_io.examples)
    stored = run_small(experiment, make_io(experiment, "stored"))
    io = make_io(experiment, "images")
    io.stores_cuts = False
    images = run_small(experiment, io)
    for ours, theirs in zip(stored.result.epochs, images.result.epochs, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
        assert ours.validation == pytest.approx(theirs.validation, rel=5e-3, abs=1e-4)
