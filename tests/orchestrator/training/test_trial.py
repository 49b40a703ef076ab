"""A whole trial: what moves and what must not, how it ends, and that it is alone in its process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.spec.strategy import FeatureExtraction, Full, Partial, Scratch
from orchestrator.training.checkpoint import read_checkpoint
from orchestrator.training.trial import run_trial
from tests.orchestrator.training.small_trials import (
    MakeIO,
    MemoryIO,
    assert_same,
    experiment_of,
    initial_backbone,
    run_small,
    stops_after,
)


def moved(io: MemoryIO, stage: int) -> dict[str, bool]:
    """Of each tensor of a stage, buffers included, whether training changed any bit of it."""
    initial = initial_backbone(io.used.spec.name)
    own = [f"stages.{stage}.", *(["closing."] if stage == initial.n_stages else [])]
    return {
        name: not torch.equal(io.reported[name], tensor)
        for name, tensor in initial.state_dict().items()
        if name.startswith(tuple(own))
    }


@pytest.mark.parametrize("augment", ["none", "light"])
def test_feature_extraction_leaves_every_bit_of_the_backbone(make_io: MakeIO, augment: str) -> None:
    strategy = FeatureExtraction(epochs=2, batch_size=4, augment=augment)
    io = make_io(experiment_of(strategy, make_io.examples))
    result = run_trial(experiment_of(strategy, io.examples), io)
    assert result.status == "finished"
    assert not any(any(moved(io, stage).values()) for stage in range(7))


@pytest.mark.parametrize("unfreeze", [1, 2, 3, 4, 5])
def test_partial_leaves_every_bit_of_the_frozen_stages_and_moves_the_others(
    make_io: MakeIO, unfreeze: int
) -> None:
    strategy = Partial(
        unfreeze=unfreeze, warm_up_epochs=1, epochs=1, batch_size=4, batch_norm="adapt"
    )
    io = make_io(experiment_of(strategy, make_io.examples))
    run_trial(experiment_of(strategy, io.examples), io)
    for stage in range(7):
        changed = moved(io, stage)
        if stage <= 6 - unfreeze:
            assert not any(changed.values()), stage
        else:
            assert all(flag for name, flag in changed.items() if "running_" in name), stage
            assert any(flag for name, flag in changed.items() if name.endswith("weight")), stage


@pytest.mark.parametrize("batch_norm", ["frozen", "adapt"])
def test_full_moves_every_stage_and_statistics_only_when_they_adapt(
    make_io: MakeIO, batch_norm: str
) -> None:
    strategy = Full(warm_up_epochs=0, epochs=1, batch_size=4, batch_norm=batch_norm)
    experiment = experiment_of(strategy, make_io.examples, backbone="resnet18")
    io = make_io(experiment)
    run_trial(experiment, io)
    for stage in range(5):
        changed = moved(io, stage)
        statistics = {flag for name, flag in changed.items() if "running_" in name}
        assert statistics <= {batch_norm == "adapt"}
        weights = [flag for name, flag in changed.items() if name.endswith("weight")]
        assert all(weights)


def test_scratch_moves_everything_and_learns_without_stored_features(make_io: MakeIO) -> None:
    strategy = Scratch(epochs=2, batch_size=4)
    experiment = experiment_of(strategy, make_io.examples)
    io = make_io(experiment)
    result = run_trial(experiment, io)
    assert [row.name for row in result.phases] == ["scratch"]
    assert result.phases[0].frozen == 0
    assert all(any(moved(io, stage).values()) for stage in range(7))


def test_a_finished_trial_says_its_phases_rows_and_best_epoch(make_io: MakeIO) -> None:
    strategy = Partial(unfreeze=2, warm_up_epochs=2, epochs=2, batch_size=4)
    experiment = experiment_of(strategy, make_io.examples)
    io = make_io(experiment)
    result = run_trial(experiment, io)
    assert (result.status, result.reason) == ("finished", "")
    assert tuple(io.rows) == result.epochs
    assert tuple(io.phases) == result.phases
    assert [(row.epoch, row.phase) for row in result.epochs] == [
        (1, "warm-up"),
        (2, "warm-up"),
        (3, "partial"),
        (4, "partial"),
    ]
    assert io.steps == 4 * 4  # 13 examples in batches of 4
    losses = [row.validation["log_loss"] for row in result.epochs]
    assert result.objective == min(losses)
    assert result.best_epoch == 1 + losses.index(min(losses))
    assert result.validation == result.epochs[result.best_epoch - 1].validation
    head = 1024 * 3 + 3
    assert result.phases[0].trainable == head
    assert result.phases[0].total == result.phases[1].total
    assert result.phases[1].trainable == head + sum(
        p.numel() for stage in (5, 6) for p in io.used.parameters_of(stage)
    )


def test_the_best_epoch_and_not_the_last_is_what_remains(make_io: MakeIO) -> None:
    """A rate that first helps and then harms makes an early epoch the best."""
    strategy = FeatureExtraction(
        epochs=6, batch_size=4, head_lr=0.3, optimizer="sgd", schedule="constant"
    )
    experiment = experiment_of(strategy, make_io.examples)
    io = make_io(experiment)
    outcome = run_small(experiment, io)
    best = outcome.result.best_epoch
    assert best is not None
    assert best < 6
    assert [path.name for path in io.checkpoints.iterdir()] == [f"epoch-{best:04d}"]
    found = read_checkpoint(io.checkpoints / f"epoch-{best:04d}")
    assert found is not None
    np.testing.assert_allclose(outcome.probs, found.validation["probs"], atol=1e-5)
    rows = io.examples.indices("validation")
    right = outcome.probs[np.arange(len(rows)), io.examples.targets()[rows]].clip(1e-7)
    assert outcome.result.objective == pytest.approx(float(-np.log(right).mean()), rel=1e-4)


def test_a_loss_that_is_no_number_ends_as_diverged_with_the_last_finite_checkpoint(
    make_io: MakeIO,
) -> None:
    strategy = Full(
        warm_up_epochs=1,
        epochs=4,
        batch_size=4,
        backbone_lr=10,
        thirds=(10, 10, 10),
        head_lr=10,
        optimizer="sgd",
        schedule="constant",
        clip_norm=0,
    )
    experiment = experiment_of(strategy, make_io.examples)
    io = make_io(experiment)
    outcome = run_small(experiment, io)
    result = outcome.result
    assert result.status == "diverged"
    assert "clip_norm" in result.reason
    assert result.best_epoch is not None
    assert 1 <= len(result.epochs) < 5
    assert result.objective is not None
    assert np.isfinite([result.objective, *result.validation.values()]).all()
    assert np.isfinite([row.train_loss for row in result.epochs]).all()
    assert all(t.isfinite().all() for t in outcome.tensors.values())
    assert np.isfinite(outcome.probs).all()
    kept = [path.name for path in io.checkpoints.iterdir()]
    assert kept == [f"epoch-{result.best_epoch:04d}"]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_no_numbers_end_as_diverged_without_a_checkpoint(
    make_io: MakeIO, value: float
) -> None:
    strategy = Full(warm_up_epochs=0, epochs=1, batch_size=4)
    experiment = experiment_of(strategy, make_io.examples)
    io = make_io(experiment)
    with torch.no_grad():
        next(iter(io.used.parameters_of(6))).view(-1)[0] = value
    result = run_trial(experiment, io)
    assert (result.status, result.checkpoint, result.best_epoch) == ("diverged", None, None)
    assert not list(io.checkpoints.glob("epoch-*"))


def test_a_stop_ends_the_trial_with_its_reason_after_that_epoch(make_io: MakeIO) -> None:
    strategy = Partial(unfreeze=1, warm_up_epochs=2, epochs=2, batch_size=4, augment="none")
    experiment = experiment_of(strategy, make_io.examples)
    for epoch in (1, 2, 3):
        io = make_io(experiment, f"stop-{epoch}", on_report=stops_after(epoch, "asha"))
        result = run_trial(experiment, io)
        assert (result.status, result.reason) == ("stopped", "asha")
        assert len(result.epochs) == epoch
        assert result.checkpoint is not None
        assert (io.checkpoints / f"epoch-{result.best_epoch:04d}").is_dir()


def test_a_stop_at_the_last_epoch_changes_nothing(make_io: MakeIO) -> None:
    strategy = FeatureExtraction(epochs=2, batch_size=4)
    experiment = experiment_of(strategy, make_io.examples)
    result = run_trial(experiment, make_io(experiment, on_report=stops_after(2, "budget")))
    assert (result.status, result.reason) == ("finished", "")


def test_a_trial_after_another_in_one_process_equals_it_alone(make_io: MakeIO) -> None:
    first = experiment_of(Scratch(epochs=1, batch_size=4, seed=5, dropout=0.3), make_io.examples)
    second = experiment_of(
        Partial(unfreeze=2, warm_up_epochs=1, epochs=1, batch_size=4, dropout=0.5, mixup=0.4),
        make_io.examples,
    )
    alone = run_small(second, make_io(second, "alone"))
    run_trial(first, make_io(first, "first"))
    torch.rand(7)
    np.random.default_rng().random()
    after = run_small(second, make_io(second, "after"))
    assert_same(alone, after)


def test_the_seed_decides_the_result(make_io: MakeIO) -> None:
    losses: list[float] = []
    for seed in (0, 0, 1):
        experiment = experiment_of(
            FeatureExtraction(epochs=1, batch_size=4, seed=seed), make_io.examples
        )
        io = make_io(experiment, f"run-{len(losses)}")
        losses.append(run_trial(experiment, io).epochs[0].train_loss)
    assert losses[0] == losses[1] != losses[2]


def test_a_trial_with_a_parent_starts_from_its_best_epoch_and_has_no_warm_up(
    make_io: MakeIO,
) -> None:
    head = experiment_of(FeatureExtraction(epochs=3, batch_size=4), make_io.examples)
    io = make_io(head, "parent")
    best = run_trial(head, io)
    assert best.checkpoint is not None
    checkpoint = read_checkpoint(io.checkpoints / Path(best.checkpoint).name)
    assert checkpoint is not None
    still = Partial(
        epochs=1,
        batch_size=4,
        head_lr=1e-9,
        backbone_lr=1e-9,
        augment="none",
        stored_precision="fp32",
    )
    child = experiment_of(still, make_io.examples).model_copy(
        update={"parents": {"head": head.digest}}
    )
    io = make_io(child, "child")
    io.parent = {name.removeprefix("head."): tensor for name, tensor in checkpoint.weights.items()}
    result = run_trial(child, io)
    assert [phase.name for phase in result.phases] == ["partial"]
    assert [row.phase for row in result.epochs] == ["partial"]
    assert result.validation["log_loss"] == pytest.approx(best.validation["log_loss"], abs=1e-4)
