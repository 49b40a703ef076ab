"""The report of a Sweep: a self-contained HTML page, and a summary for the terminal."""

from orchestrator.report.page import write_report
from orchestrator.report.terminal import leaderboard_table, terminal_summary

__all__ = ["leaderboard_table", "terminal_summary", "write_report"]
