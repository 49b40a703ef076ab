"""The terminal summary says who won, and survives what is missing."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from orchestrator.report import leaderboard_table, terminal_summary


def shown(renderable, *, width: int = 110) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(renderable)
    return console.export_text()


def test_the_summary_names_the_winner_its_interval_and_its_gains(build_sweep):
    words = shown(terminal_summary(build_sweep()))
    assert "wins: f1_macro 0." in words
    assert "on test (0." in words
    assert "over scratch (95 % +" in words
    assert "and 12 trials more" in words
    assert "3 trials diverged" in words


@pytest.mark.parametrize("recipe", [{"n_trials": 0}, {"n_trials": 4, "all_diverged": True}])
def test_a_sweep_without_a_winner_says_so(build_sweep, recipe):
    assert "No trial has a score" in shown(terminal_summary(build_sweep(**recipe)))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_fits_its_terminal(build_sweep, width):
    rows = json.loads((build_sweep() / "leaderboard.json").read_text())["rows"]
    lines = shown(leaderboard_table(rows), width=width).splitlines()
    assert max(map(len, lines)) <= width


def test_rows_with_nothing_in_them_and_markup_are_shown_as_they_are():
    rows = [{}, {"strategy": "[red]x[/]", "status": "failed", "reason": "[/bold]"}]
    words = shown(leaderboard_table(rows))
    assert "[red]x[/]" in words
    assert "[/bold]" in words
