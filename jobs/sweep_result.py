"""How `sweep` and `train` end: summary, folder, exit code."""

from __future__ import annotations

from typing import Any

from jobs.terminal import Terminal
from orchestrator.spec.mirror import location_of
from orchestrator.tuning.sweep import SweepOutcome


def show_outcome(outcome: SweepOutcome, terminal: Terminal) -> tuple[int, Any]:
    """Show how a run of a sweep ended; its exit code and JSON document."""
    if not terminal.as_json:
        from orchestrator.report.terminal import terminal_summary

        terminal.show(terminal_summary(outcome.folder))
        terminal.show(f"sweep: {location_of(outcome.folder)}")
    if outcome.status == "interrupted":
        return 130, outcome.to_json()
    return (0 if outcome.best is not None else 1), outcome.to_json()
