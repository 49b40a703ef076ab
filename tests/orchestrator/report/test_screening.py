"""What the report says of the screen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.reading import read_sweep
from orchestrator.report.screening import rank_agreement, regret, screen_rows, screening
from orchestrator.report.sweep_view import SweepView, TrialView
from orchestrator.spec.parts import ObjectiveSpec


def screened(name: str, role: str, place: float) -> dict[str, Any]:
    return {
        "backbone": {"name": name, "weights": "none"},
        "log_me": -0.5,
        "bank": 0.8,
        "place": place,
        "role": role,
    }


def ended(trial: str, strategy: str, backbone: str, objective: float) -> TrialView:
    return TrialView(
        id=trial, status="finished", strategy=strategy, backbone=backbone, objective=objective
    )


@pytest.fixture
def view(tmp_path: Path) -> SweepView:
    """Three screened backbones, two of them fine-tuned; a head beats both."""
    (tmp_path / "sweep.json").write_text('{"name": "s", "task": "image-classification"}')
    trials = [
        ended("0", "feature-extraction", "c", 0.99),
        ended("1", "partial", "a", 0.9),
        ended("2", "full", "b", 0.8),
        ended("3", "partial", "a", 0.7),
    ]
    rows = [screened("a", "kept", 1.0), screened("b", "audit", 2.0), screened("c", "dropped", 3.0)]
    return dataclasses.replace(
        read_sweep(tmp_path),
        trials=tuple(trials),
        plan={"screen": rows},
        objective=ObjectiveSpec(metric="accuracy"),
    )


def with_objective(view: SweepView, trial: str, value: float) -> SweepView:
    trials = [dataclasses.replace(t, objective=value) if t.id == trial else t for t in view.trials]
    trials.sort(key=lambda t: -(t.objective or 0.0))
    return dataclasses.replace(view, trials=tuple(trials))


def test_each_backbone_has_its_best_fine_tuned_score(view: SweepView) -> None:
    assert [(row.backbone, row.final) for row in screen_rows(view)] == [
        ("a", 0.9),
        ("b", 0.8),
        ("c", None),
    ]


def test_an_audit_that_ends_behind_finds_nothing_lost(view: SweepView) -> None:
    rows = screen_rows(view)
    assert regret(view, rows) == 0.0
    assert rank_agreement(view, rows) == (1.0, 2)
    page = screening(view)
    assert "kept 1 of 3 backbones: the audit of the rest found nothing lost" in page
    assert "τ between this order and the final one: 1.00, over 2 backbones" in page


def test_an_audit_that_ends_ahead_is_the_regret(view: SweepView) -> None:
    ahead = with_objective(view, "2", 0.95)
    rows = screen_rows(ahead)
    assert regret(ahead, rows) == pytest.approx(0.05)
    assert rank_agreement(ahead, rows) == (-1.0, 2)
    assert "+0.050" in screening(ahead)


def test_lower_is_better_turns_both_round(view: SweepView) -> None:
    low = dataclasses.replace(view, objective=ObjectiveSpec(metric="log_loss", mode="min"))
    trials = tuple(sorted(low.trials, key=lambda t: t.objective or 0.0))
    low = dataclasses.replace(low, trials=trials)
    rows = screen_rows(low)
    assert [row.final for row in rows] == [0.7, 0.8, None]
    assert regret(low, rows) == 0.0
    assert rank_agreement(low, rows) == (1.0, 2)


@pytest.mark.parametrize("plan", [{}, {"screen": None}, {"screen": [3, {"backbone": "a"}]}])
def test_without_a_screen_there_is_no_figure(view: SweepView, plan: dict[str, Any]) -> None:
    assert screening(dataclasses.replace(view, plan=plan)) == ""
