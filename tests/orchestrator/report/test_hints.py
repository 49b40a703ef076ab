"""Hints fire on what they describe, and only then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.report.comparison import compare
from orchestrator.report.hints import hints, overfits
from orchestrator.report.reading import read_sweep
from orchestrator.report.sweep_view import HeldOutScore


@pytest.fixture(scope="module")
def view(build_sweep):
    return read_sweep(build_sweep())


def titles(view) -> str:
    return "\n".join(f"{hint.title}. {hint.sentence}" for hint in hints(view, compare(view)))


def changed(view, trial, **changes):
    """The view with one trial changed."""
    new = replace(trial, **changes)
    return replace(view, trials=tuple(new if t is trial else t for t in view.trials))


def test_diverged_trials_are_counted_and_a_separating_rate_is_named(view):
    n = len(view.of("diverged"))
    assert n > 1
    assert f"{n} trials diverged" in titles(view)


def test_failures_carry_their_reasons(view):
    assert "1 trial failed. RuntimeError: out of memory (1)." in titles(view)


def test_overfitting_needs_a_rising_validation_loss_under_a_falling_training_loss(view):
    winner = view.winner
    rows = winner.record.epochs

    def with_losses(losses):
        epochs = tuple(
            row.model_copy(update={"validation": {"log_loss": loss}})
            for row, loss in zip(rows, losses, strict=True)
        )
        return replace(winner, record=winner.record.model_copy(update={"epochs": epochs}))

    n = len(rows)
    falling = [1 - 0.01 * i for i in range(n)]
    rising = [1 + 0.05 * abs(i - n // 2) for i in range(n)]
    assert not overfits(with_losses(falling))
    assert overfits(with_losses(rising))


def test_a_best_last_epoch_asks_for_more_epochs(view):
    winner = view.winner
    assert "still improving" in titles(changed(view, winner, best_epoch=winner.n_epochs))
    assert "still improving" not in titles(changed(view, winner, best_epoch=2))


def test_pretrained_trials_below_scratch_are_negative_transfer(view):
    assert "Negative transfer" not in titles(view)
    worse = changed(view, view.scored[-2], objective=view.baseline.objective - 0.1)
    assert "Negative transfer in 1 of" in titles(worse)


def test_a_winner_at_the_end_of_a_searched_range_is_told(view):
    near = changed(view, view.winner, searched={"backbone_lr": 1.02e-5})
    inside = changed(view, view.winner, searched={"backbone_lr": 2e-4})
    assert "at the lower end of [1e-05, 0.003]" in titles(near)
    assert "edge of the search" not in titles(inside)


def test_a_test_score_far_below_validation_is_a_problem(view):
    low = HeldOutScore({"f1_macro": 0.5}, n=500, intervals={"f1_macro": (0.45, 0.55)})
    assert "clearly below validation" in titles(replace(view, test=low))
    assert "clearly below validation" not in titles(view)


def test_bad_calibration_is_told_from_the_winner_s_error(view):
    off = HeldOutScore({"f1_macro": 0.9, "ece": 0.2})
    assert "confidence is off" in titles(replace(view, test=off))


def test_runners_up_within_noise_are_ties(view):
    comparison = compare(view)
    gaps = {t.id: view.winner.objective - t.objective for t in view.scored}
    assert comparison.n_rivals == min(10, len(view.scored) - 1)
    for tie in comparison.ties:
        assert gaps[tie.id] < 0.1


def test_gains_are_the_differences_that_the_leaderboard_shows(view):
    comparison = compare(view)
    won = view.winner.objective
    assert comparison.over_baseline.value == pytest.approx(won - view.baseline.objective)
    assert comparison.over_default.value == pytest.approx(won - view.default.objective)
    assert comparison.over_baseline.clear
