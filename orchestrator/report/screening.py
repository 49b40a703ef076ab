"""Screening: how the order of backbones before fine-tuning compares with the order after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy.stats import kendalltau

from orchestrator.report.figures import figure, scrolling
from orchestrator.report.markup import Safe, el
from orchestrator.report.sweep_view import SweepView
from orchestrator.report.wording import MISSING, finite, number, score, signed

FINE_TUNED = {"partial", "full"}


@dataclass(frozen=True)
class ScreenRow:
    """A backbone as it was screened, and its best score once fine-tuned, where it was."""

    backbone: str
    role: str
    place: float
    log_me: float | None
    bank: float | None
    final: float | None


def screen_rows(view: SweepView) -> list[ScreenRow]:
    """The backbones of the plan's screen, best first; empty where nothing was screened."""
    found = view.plan.get("screen")
    rows = []
    for place, row in enumerate(found if isinstance(found, list) else (), start=1):
        if not isinstance(row, Mapping) or not isinstance(row.get("backbone"), Mapping):
            continue
        name, weights = (str(row["backbone"].get(key)) for key in ("name", "weights"))
        rows.append(
            ScreenRow(
                backbone=name,
                role=str(row.get("role")),
                place=finite(row.get("place")) or float(place),
                log_me=finite(row.get("log_me")),
                bank=finite(row.get("bank")),
                final=_best_fine_tuned(view, name, weights),
            )
        )
    return rows


def rank_agreement(view: SweepView, rows: list[ScreenRow]) -> tuple[float, int] | None:
    """Kendall's τ between the screen's order and the final one, and over how many backbones."""
    known = [(row.place, row.final) for row in rows if row.final is not None]
    if len(known) < 2:
        return None
    sign = -1.0 if view.objective.mode == "max" else 1.0
    tau = finite(kendalltau([p for p, _ in known], [sign * f for _, f in known]).statistic)
    return None if tau is None else (tau, len(known))


def regret(view: SweepView, rows: list[ScreenRow]) -> float | None:
    """By how much the audited backbone ended better than the best that was kept; 0 if it did not.

    Positive is worse for the screen, whichever way the objective goes.
    """
    sign = 1.0 if view.objective.mode == "max" else -1.0
    kept = [sign * row.final for row in rows if row.role == "kept" and row.final is not None]
    audit = [sign * row.final for row in rows if row.role == "audit" and row.final is not None]
    return max(0.0, max(audit) - max(kept)) if kept and audit else None


def screening(view: SweepView) -> Safe:
    """The figure; empty where nothing was screened."""
    rows = screen_rows(view)
    if not rows:
        return Safe("")
    kept = sum(row.role == "kept" for row in rows)
    title = f"Screening on frozen features kept {kept} of {len(rows)} backbones"
    lost = regret(view, rows)
    if lost is not None:
        title += ": the audit of the rest found " + (
            f"{signed(lost)} `{view.objective.metric}` lost" if lost > 0 else "nothing lost"
        )
    note = (
        "Ordered by the mean rank of LogME and of the best head on the same features. One backbone "
        "that was not kept is fine-tuned once in every block, to audit the screen."
    )
    if (agreement := rank_agreement(view, rows)) is not None:
        tau, n = agreement
        note += f" Kendall's τ between this order and the final one: {tau:.2f}, over {n} backbones."
    metric = view.objective.metric
    heads = ("backbone", "", "LogME", f"best head, {metric}", f"fine-tuned, {metric}")
    body = [
        el(
            "tr",
            el("th", row.backbone, scope="row"),
            el("td", row.role),
            *(el("td", text, class_="number") for text in _numbers(row)),
        )
        for row in rows
    ]
    table = el(
        "table",
        el("thead", el("tr", *(el("th", head, scope="col") for head in heads))),
        el("tbody", *body),
        aria_label="Screened backbones",
    )
    return figure(title, scrolling(table, label="Screened backbones"), note=note, class_="wide")


def _numbers(row: ScreenRow) -> list[str]:
    log_me = MISSING if row.log_me is None else number(round(row.log_me, 3))
    return [log_me, *(MISSING if v is None else score(v) for v in (row.bank, row.final))]


def _best_fine_tuned(view: SweepView, name: str, weights: str) -> float | None:
    """The best objective of a fine-tuned trial of a backbone; `scored` is best first."""
    for trial in view.scored:
        experiment: Any = trial.record.experiment if trial.record else None
        mine = experiment is None or experiment.backbone.weights == weights
        if trial.backbone == name and trial.strategy in FINE_TUNED and mine:
            return trial.objective
    return None
