"""Every head of a bank ends with what it would have had alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.spec.experiment import Experiment
from orchestrator.spec.strategy import FeatureExtraction, Partial
from orchestrator.training.bank import bank_key, can_join, run_bank
from orchestrator.training.checkpoint import read_checkpoint
from orchestrator.training.trial import TrialResult, run_trial
from tests.orchestrator.training.small_trials import MakeIO, experiment_of

COMMON = {"batch_size": 4, "epochs": 4}
# Each bank's heads differ in whatever may differ.
BANKS: dict[str, tuple[dict[str, object], list[dict[str, object]]]] = {
    "adamw": (
        {"optimizer": "adamw"},
        [
            {"head_lr": 1e-2},
            {"head_lr": 3e-2, "weight_decay": 0.5, "label_smoothing": 0.1},
            {"head_lr": 1e-2, "dropout": 0.5},
            {"head_lr": 1e-2, "dropout": 0.2, "seed": 3},
            {"head_lr": 2e-2, "seed": 3, "schedule": "onecycle"},
            {"head_lr": 1e-2, "epochs": 2, "schedule": "linear-warm-up-cosine"},
            {"head_lr": 1e-2, "class_weights": "balanced", "ema_decay": 0.8},
            {"head_lr": 1e-2, "loss": "focal", "focal_gamma": 1.5, "clip_norm": 0.1},
        ],
    ),
    "adam": (
        {"optimizer": "adam", "views": 4, "predict_views": 2, "pooling": "multi-scale"},
        [{"head_lr": 1e-2}, {"weight_decay": 0.3, "schedule": "constant"}, {"seed": 1}],
    ),
    "sgd": (
        {"optimizer": "sgd"},
        [
            {"head_lr": 0.05, "schedule": "step"},
            {"head_lr": 0.02, "weight_decay": 0.1, "schedule": "onecycle", "clip_norm": 0.5},
        ],
    ),
    "mlp": (
        {"head": "mlp", "hidden": 8, "optimizer": "adamw"},
        [
            {"head_lr": 1e-2},
            {"head_lr": 1e-2, "dropout": 0.5},
            {"head_lr": 1e-2, "feature_dropout": 0.3},
            {"head_lr": 1e-2, "feature_dropout": 0.3, "dropout": 0.4, "ema_decay": 0.9},
            {"head_lr": 3e-2, "seed": 5, "feature_dropout": 0.6},
        ],
    ),
    "widths": (
        {"head": "mlp", "optimizer": "adamw", "head_lr": 1e-2},
        [
            {"hidden": 8},
            {"hidden": 16, "dropout": 0.5},
            {"hidden": 11, "dropout": 0.4, "clip_norm": 0.1, "weight_decay": 0.5},
            {"hidden": 11, "ema_decay": 0.9, "seed": 2, "feature_dropout": 0.3, "epochs": 2},
        ],
    ),
}


def experiments_of(name: str, make_io: MakeIO) -> list[Experiment]:
    common, heads = BANKS[name]
    return [
        experiment_of(FeatureExtraction(**(COMMON | common | head)), make_io.examples)
        for head in heads
    ]


def banked(
    experiments: Sequence[Experiment], make_io: MakeIO, stop_after: int = 10**9
) -> tuple[list[TrialResult], list[Path], list[tuple[int, int, int]]]:
    """Results of a bank, where each member's checkpoints are, and what it told."""
    told: list[tuple[int, int, int]] = []
    folders = [make_io(e, f"bank-{i}").checkpoints for i, e in enumerate(experiments)]
    where = dict(zip((e.id for e in experiments), folders, strict=True))
    results = run_bank(
        experiments,
        make_io(experiments[0]),
        checkpoints=lambda e: where[e.id],
        on_epoch=lambda *row: told.append(row),
        stopped_by=lambda: "budget" if len(told) >= stop_after else None,
    )
    return results, folders, told


@pytest.mark.parametrize("name", list(BANKS))
def test_a_bank_ends_with_the_results_of_separate_runs(make_io: MakeIO, name: str) -> None:
    experiments = experiments_of(name, make_io)
    together, folders, told = banked(experiments, make_io)
    assert told[-1][:2] == (4, 4)
    for i, (experiment, ours) in enumerate(zip(experiments, together, strict=True)):
        alone = run_trial(experiment, make_io(experiment, f"alone-{i}"))
        assert (ours.status, ours.reason) == ("finished", "")
        assert ours.phases == alone.phases
        assert [row.epoch for row in ours.epochs] == [row.epoch for row in alone.epochs]
        for one, other in zip(ours.epochs, alone.epochs, strict=True):
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4, abs=1e-5)
            assert one.validation == pytest.approx(other.validation, rel=1e-3, abs=1e-4)
        assert ours.best_epoch == alone.best_epoch
        assert ours.objective == pytest.approx(alone.objective, rel=1e-3, abs=1e-5)
        mine = read_checkpoint(folders[i] / f"epoch-{ours.best_epoch:04d}")
        theirs = read_checkpoint(
            make_io(experiment, f"alone-{i}").checkpoints / f"epoch-{alone.best_epoch:04d}"
        )
        assert mine is not None
        assert theirs is not None
        assert mine.weights.keys() == theirs.weights.keys()
        for key, tensor in mine.weights.items():
            torch.testing.assert_close(tensor, theirs.weights[key], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            mine.validation["probs"], theirs.validation["probs"], rtol=1e-3, atol=1e-4
        )


def test_a_diverged_head_leaves_and_the_others_do_not_notice(make_io: MakeIO) -> None:
    healthy = [
        experiment_of(FeatureExtraction(**COMMON, optimizer="sgd", head_lr=lr), make_io.examples)
        for lr in (0.01, 0.02)
    ]
    wild = experiment_of(
        FeatureExtraction(batch_size=4, epochs=20, optimizer="sgd", head_lr=10.0,
                          schedule="constant", weight_decay=10.0),
        make_io.examples,
    )  # fmt: skip
    without, *_ = banked(healthy, make_io)
    (first, bad, last), _, told = banked([healthy[0], wild, healthy[1]], make_io)
    assert bad.status == "diverged"
    assert "Lower the rates, or set clip_norm: 1.0" in bad.reason
    for ours, expected in zip((first, last), without, strict=True):
        assert ours.status == "finished"
        for one, other in zip(ours.epochs, expected.epochs, strict=True):
            assert one.validation == pytest.approx(other.validation, rel=1e-4, abs=1e-6)
    assert bad.best_epoch is None or bad.epochs[-1].epoch < 20
    assert told[3][2] >= 2


def test_a_stop_ends_what_is_left_with_its_reason(make_io: MakeIO) -> None:
    experiments = experiments_of("adamw", make_io)
    results, folders, told = banked(experiments, make_io, stop_after=2)
    assert [row[0] for row in told] == [1, 2]
    for experiment, result, folder in zip(experiments, results, folders, strict=True):
        short = experiment.strategy.epochs == 2
        assert (result.status, result.reason) == (
            ("finished", "") if short else ("stopped", "budget")
        )
        assert len(result.epochs) == 2
        assert read_checkpoint(folder / f"epoch-{result.best_epoch:04d}") is not None


def test_heads_of_one_bank_read_the_same_features_in_the_same_shapes(make_io: MakeIO) -> None:
    base = FeatureExtraction(**COMMON)
    key = bank_key(experiment_of(base, make_io.examples))

    def key_with(**changes: object) -> str:
        strategy = FeatureExtraction(**(base.model_dump() | changes))
        return bank_key(experiment_of(strategy, make_io.examples))

    alike = [
        {"head_lr": 0.1},
        {"seed": 9},
        {"dropout": 0.3},
        {"epochs": 9},
        {"loss": "focal"},
        {"hidden": 9},
    ]
    other = [
        {"head": "mlp"}, {"batch_size": 8}, {"optimizer": "sgd"}, {"views": 2},
        {"predict_views": 4}, {"pooling": "multi-scale"}, {"image_size": 64},
    ]  # fmt: skip
    assert {key_with(**changes) for changes in alike} == {key}
    assert len({key, *(key_with(**changes) for changes in other)}) == len(other) + 1
    assert key != bank_key(experiment_of(base, make_io.examples, backbone="resnet18"))


@pytest.mark.parametrize(
    ("strategy", "joins"),
    [
        (FeatureExtraction(), True),
        (FeatureExtraction(augment="light"), False),
        (FeatureExtraction(mixup=0.2), False),
        (FeatureExtraction(accumulate=2), False),
        (FeatureExtraction(precision="fp16"), False),
        (Partial(augment="none"), False),
    ],
)
def test_only_heads_on_stored_features_join(
    make_io: MakeIO, strategy: FeatureExtraction, joins: bool
) -> None:
    assert can_join(experiment_of(strategy, make_io.examples)) is joins


def test_the_seconds_of_a_bank_are_divided_among_its_heads(make_io: MakeIO) -> None:
    experiments = experiments_of("adam", make_io)
    results, *_ = banked(experiments, make_io)
    each = [[row.seconds for row in result.epochs] for result in results]
    assert np.allclose(each, each[0])
    assert all(result.seconds == pytest.approx(sum(each[0])) for result in results)
