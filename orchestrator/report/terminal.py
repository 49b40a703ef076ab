"""The sweep in a terminal: the verdict, the best trials, and what to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.report.adaptation import adaptations
from orchestrator.report.comparison import Comparison, compare
from orchestrator.report.hints import Hint, hints
from orchestrator.report.reading import read_sweep
from orchestrator.report.sweep_view import SweepView
from orchestrator.report.wording import (
    MISSING,
    cut,
    duration,
    finite,
    number,
    plural,
    score,
    signed,
    strategy_name,
    value,
)

MOST_ROWS = 12
STYLES = {"finished": "green", "stopped": "yellow", "diverged": "red", "failed": "red"}

Row = Mapping[str, Any]


def terminal_summary(sweep_dir: Path) -> Group:
    """The verdict, the leaderboard's top and the hints of a sweep's folder.

    Raises:
        SpecError: The folder is no sweep's.
    """
    view = read_sweep(sweep_dir)
    comparison = compare(view)
    rows = [_row_of(view, index) for index in range(len(view.trials))]
    parts: list[Any] = [_verdict(view, comparison)]
    if rows:
        parts += [Text(), leaderboard_table(rows, metric=view.objective.metric)]
    found = hints(view, comparison)
    if found:
        parts += [Text(), *(_hint(hint) for hint in found)]
    return Group(*parts)


def leaderboard_table(
    rows: Sequence[Row], *, metric: str = "objective", most: int = MOST_ROWS
) -> Table:
    """The first rows of a leaderboard.

    Args:
        rows: As in `leaderboard.json`.
        metric: The objective's name.
        most: How many rows are shown; the caption counts the others.
    """
    more = len(rows) - most
    table = Table(
        box=None,
        pad_edge=False,
        header_style="dim",
        caption=Text(f"and {plural(more, 'trial')} more") if more > 0 else None,
        caption_justify="left",
    )
    table.add_column("#", justify="right")
    table.add_column(Text(metric), justify="right")
    table.add_column("trial", overflow="fold", ratio=1)
    table.add_column("epoch", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    for row in rows[:most]:
        table.add_row(*_cells(row), style="bold" if row.get("rank") == 1 else None)
    return table


def _cells(row: Row) -> list[Text]:
    status, reason = str(row.get("status") or "unknown"), str(row.get("reason") or "")
    ended = status in {"finished", "stopped"}
    searched = row.get("searched")
    settings = searched.items() if isinstance(searched, Mapping) else ()
    rank, best = row.get("rank"), row.get("best_epoch")
    backbone = cut(str(row.get("backbone") or MISSING), 28)
    name = str(row.get("strategy") or MISSING) + (" (default)" if row.get("default") else "")
    return [
        Text(MISSING if rank is None else str(rank)),
        Text(score(finite(row.get("objective")) if ended else None)),
        Text("  ".join([name, backbone, *(f"{key} {value(v)}" for key, v in settings)])),
        Text(f"{MISSING if best is None else best}/{row.get('n_epochs') or MISSING}"),
        Text(duration(finite(row.get("seconds")))),
        Text(f"{status}: {cut(reason, 24)}" if reason else status, STYLES.get(status, "")),
    ]


def _row_of(view: SweepView, index: int) -> Row:
    trial = view.trials[index]
    return {
        "rank": trial.rank if trial.rank is not None else index + 1 if trial.scored else None,
        "objective": trial.objective,
        "strategy": trial.strategy,
        "backbone": trial.backbone,
        "searched": trial.searched,
        "best_epoch": trial.best_epoch,
        "n_epochs": trial.n_epochs,
        "seconds": trial.seconds,
        "status": trial.status,
        "reason": trial.reason,
        "default": trial.default,
    }


def _verdict(view: SweepView, comparison: Comparison) -> Text:
    text = Text()
    winner, metric = view.winner, view.objective.metric
    text.append(view.name, "bold")
    text.append(f"  {plural(len(view.trials), 'trial')} in {duration(view.seconds)}")
    text.append("" if view.status == "finished" else f", {view.status}", "yellow")
    if winner is None:
        return text.append("\nNo trial has a score.", "red")
    text.append(f"\n{strategy_name(winner.strategy)} of {winner.backbone} wins: ")
    for index, standing in enumerate(s for s in comparison.standings if s.name == "Winner"):
        text.append(", " if index else "")
        text.append(f"{metric} {score(standing.score)}", "bold green")
        text.append(f" on {standing.split}")
        if standing.interval:
            text.append(f" ({score(standing.interval.low)}–{score(standing.interval.high)})", "dim")
    for name, gain in (
        ("over scratch", comparison.over_baseline),
        ("over zero-shot", comparison.over_floor),
        ("over its default", comparison.over_default),
    ):
        if gain is not None:
            text.append(f"\n{signed(gain.value)} {name}")
            if gain.interval:
                pair = f"{signed(gain.interval.low)} to {signed(gain.interval.high)}"
                text.append(f" (95 % {pair})", "dim")
    for adapted in adaptations(view):
        text.append(f"\n{adapted.sentence}")
    speed = winner.images_per_s
    return text.append(f"\n{number(round(speed))} examples/s in training", "dim") if speed else text


def _hint(hint: Hint) -> Text:
    sign, style = ("!", "red") if hint.severity == "problem" else ("·", "cyan")
    words = Text(f"{sign} ", style)
    words.append(f"{hint.title}. ", "bold")
    words.append(hint.sentence.replace("`", ""))
    return words
