"""Leaderboard: every Trial with its score, its settings, its cost and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from orchestrator.report.adaptation import Adaptation
from orchestrator.report.comparison import Comparison
from orchestrator.report.figures import scrolling
from orchestrator.report.marks import strategy_class
from orchestrator.report.markup import Safe, el, join
from orchestrator.report.sweep_view import SweepView, TrialView
from orchestrator.report.wording import MISSING, duration, finite, memory, number, score, value
from orchestrator.spec.parts import Metric

SPARK_WIDTH, SPARK_HEIGHT = 72.0, 18.0
SIGNS = {"finished": "●", "stopped": "◐", "diverged": "✕", "failed": "▲"}


def leaderboard(
    view: SweepView, comparison: Comparison, adapted: Sequence[Adaptation] = ()
) -> Safe:
    """The table, or a sentence where no trial ended."""
    twins = [one.twin for one in adapted if one.twin is not None]
    if not view.trials:
        return el("p", "No trial has ended yet.", class_="empty")
    metrics = _metrics(view)
    titles = ["#", view.objective.metric, "course", "strategy", "backbone", "settings"]
    titles += ["ended", "time", "best epoch", *metrics, "examples/s", "memory", "trial"]
    words = {"#", "course", "strategy", "backbone", "settings", "ended", "trial"}
    head = [
        el(
            "th",
            t,
            scope="col",
            class_=None if t in words else "num",
            data_sort=None if t in {"course", "settings"} else "yes",
        )
        for t in titles
    ]
    bounds = _bounds(view)
    rows = [_row(view, t, metrics, comparison, bounds, twins) for t in view.trials]
    table = el(
        "table",
        el("thead", el("tr", *head)),
        el("tbody", *rows),
        class_="board sortable",
        aria_label="Leaderboard",
    )
    return scrolling(table, label="Leaderboard", class_="scroll tall")


def _metrics(view: SweepView) -> list[str]:
    order = list(get_args(Metric))
    found = {m for trial in view.trials for m in trial.validation} - {view.objective.metric}
    return [m for m in order if m in found] + sorted(found - {*order})


def _row(
    view: SweepView,
    trial: TrialView,
    metrics: Sequence[str],
    comparison: Comparison,
    bounds: tuple[float, float],
    twins: Sequence[TrialView],
) -> Safe:
    cells = [
        _cell(str(trial.rank) if trial.rank is not None else MISSING, sort=trial.rank),
        _objective(view, trial, comparison, twins),
        el("td", _sparkline(view, trial, bounds)),
        el(
            "td",
            el("i", class_=f"dot {strategy_class(trial.strategy)}"),
            trial.strategy,
            data_v=trial.strategy,
        ),
        el("td", trial.backbone, data_v=trial.backbone),
        el("td", _settings(trial), class_="settings"),
        _status(trial),
        _number(duration(trial.seconds) if trial.seconds else MISSING, trial.seconds or None),
        _number(_epochs(trial), trial.best_epoch),
        *(
            _number(score(finite(trial.validation.get(m))), trial.validation.get(m))
            for m in metrics
        ),
        _number(_speed(trial), trial.images_per_s or None),
        _number(memory(trial.peak_memory_bytes), trial.peak_memory_bytes or None),
        el("td", el("code", trial.id), data_v=trial.id),
    ]
    return el(
        "tr",
        *cells,
        class_="winner" if trial is view.winner else None if trial.scored else "unscored",
        data_t=trial.id,
        data_tip=_tip(view, trial),
    )


def _objective(
    view: SweepView, trial: TrialView, comparison: Comparison, twins: Sequence[TrialView]
) -> Safe:
    shown = trial.objective if trial.scored else None
    badges: list[str] = []
    if trial is view.winner:
        badges.append(el("span", "winner", class_="badge winner"))
    if any(trial is tie for tie in comparison.ties):
        badges.append(el("span", "≈", class_="badge", title="within noise of the winner"))
    if trial.default:
        badges.append(el("span", "default", class_="badge", title="its block's vetted default"))
    if any(trial is twin for twin in twins):
        words = "a domain-adaptive default's twin without pretraining"
        badges.append(el("span", "twin", class_="badge", title=words))
    if trial is view.baseline:
        badges.append(el("span", "baseline", class_="badge"))
    if trial is view.floor:
        badges.append(el("span", "floor", class_="badge", title="the best without training"))
    attributes = {"data_v": repr(shown)} if shown is not None else {}
    return el("td", join(badges), " ", el("b", score(shown)), class_="num", **attributes)


def _settings(trial: TrialView) -> Safe:
    if not trial.searched:
        return Safe(MISSING)
    return join([el("span", f"{k} ", el("b", value(v))) for k, v in trial.searched.items()], " ")


def _status(trial: TrialView) -> Safe:
    sign = el("i", SIGNS.get(trial.status, "?"), class_=f"sign st-{trial.status}")
    reason = el("span", trial.reason, class_="reason") if trial.reason else ""
    return el("td", sign, trial.status, " ", reason, data_v=trial.status, class_="ended")


def _epochs(trial: TrialView) -> str:
    if trial.best_epoch is None:
        return MISSING if not trial.n_epochs else f"– of {trial.n_epochs}"
    return f"{trial.best_epoch} of {trial.n_epochs}"


def _speed(trial: TrialView) -> str:
    return number(round(trial.images_per_s)) if trial.images_per_s else MISSING


def _cell(shown: str, *, sort: float | None) -> Safe:
    return el("td", shown, data_v=None if sort is None else f"{sort:g}")


def _number(shown: str, sort: float | None) -> Safe:
    return el("td", shown, class_="num", data_v=None if sort is None else f"{sort:.6g}")


def _tip(view: SweepView, trial: TrialView) -> str:
    """What script.js shows beside the trial's marks, one fact a line."""
    shown = score(trial.objective) if trial.scored else trial.status
    lines = [trial.name, f"{view.objective.metric} {shown}"]
    lines += [f"{key} {value(v)}" for key, v in trial.searched.items()]
    if trial.seconds:
        lines.append(duration(trial.seconds))
    return "\n".join(lines)


def _bounds(view: SweepView) -> tuple[float, float]:
    """The range that all sparklines share, its worst tenth cut."""
    ys = sorted(y for trial in view.trials for y in _course(view, trial))
    if not ys:
        return 0.0, 1.0
    cut = len(ys) // 10
    kept = ys[cut:] if view.objective.mode == "max" else ys[: len(ys) - cut]
    return kept[0], kept[-1]


def _course(view: SweepView, trial: TrialView) -> list[float]:
    rows = trial.record.epochs if trial.record else ()
    found = (finite(row.validation.get(view.objective.metric)) for row in rows)
    return [y for y in found if y is not None]


def _sparkline(view: SweepView, trial: TrialView, bounds: tuple[float, float]) -> Safe:
    """The objective by epoch, as small as a word; the text stands in the other columns."""
    ys, (low, high) = _course(view, trial), bounds
    if len(ys) < 2 or high <= low:
        return Safe("")
    step = (SPARK_WIDTH - 4) / (len(ys) - 1)
    fractions = [min(1.0, max(0.0, (y - low) / (high - low))) for y in ys]
    places = (
        f"{2 + i * step:.0f},{SPARK_HEIGHT - 2 - f * (SPARK_HEIGHT - 4):.1f}"
        for i, f in enumerate(fractions)
    )
    return el(
        "svg",
        el("path", d="M" + "L".join(places)),
        viewBox=f"0 0 {SPARK_WIDTH:g} {SPARK_HEIGHT:g}",
        width=SPARK_WIDTH,
        height=SPARK_HEIGHT,
        class_="spark",
        aria_hidden="true",
    )
