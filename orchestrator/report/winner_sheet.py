"""Winner sheet: what won, how it was trained, and where it is right and wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.report.confusion import confusion_table
from orchestrator.report.figures import figure, scrolling
from orchestrator.report.gallery import Preview, gallery
from orchestrator.report.learning_curves import winner_curves
from orchestrator.report.markup import Safe, el
from orchestrator.report.predictions import Predictions
from orchestrator.report.reliability import reliability
from orchestrator.report.span_gallery import span_gallery
from orchestrator.report.sweep_view import SweepView, TrialView
from orchestrator.report.wording import MISSING, number, parameters, score, value
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import TextContract, by_position
from orchestrator.spec.record import PhaseRow, Record
from orchestrator.tasks.task import build_task

CALLED = {"token-classification": "kind of entity", "question-answering": "kind of question"}


def winner_sheet(view: SweepView, preview: Preview | None) -> list[Safe]:
    """The parts of the winner's section."""
    winner = view.winner
    if winner is None:
        return [el("p", "There is no winner: no trial has a score.", class_="empty")]
    parts = [winner_curves(view)]
    if winner.record is not None:
        parts += [_phases(winner.record), _between(winner.record), _params(winner, winner.record)]
    if view.predictions is None:
        words = "The winner left no readable predictions, so its mistakes cannot be shown."
        return [*parts, el("p", words, class_="empty")]
    return [*parts, *_behaviour(view.predictions, preview)]


def _phases(record: Record) -> Safe:
    if not record.phases:
        return Safe("")
    rows = [row for phase in record.phases for row in _phase_rows(phase)]
    titles = ["phase", "epochs", "group", "peak rate", "weight decay", "parameters"]
    numeric = set(titles) - {"phase", "group"}
    head = [el("th", t, scope="col", class_="num" if t in numeric else None) for t in titles]
    last = record.phases[-1]
    share = 100 * last.trainable / last.total if last.total else 0.0
    table = el(
        "table",
        el("thead", el("tr", *head)),
        el("tbody", *rows),
        aria_label="Phases and parameter groups",
    )
    return figure(
        f"It trained {parameters(last.trainable)} of {parameters(last.total)} parameters in the "
        f"end ({share:.3g} %)",
        scrolling(table, label="Phases"),
        class_="wide",
    )


def _phase_rows(phase: PhaseRow) -> list[Safe]:
    counts = (
        f"{parameters(phase.trainable)} trained, {parameters(phase.frozen)} frozen, "
        f"{parameters(phase.total)} in all"
    )
    span = max(1, len(phase.groups))
    lead = [
        el("th", phase.name, el("span", counts, class_="sub"), scope="rowgroup", rowspan=span),
        el("td", str(phase.epochs), class_="num", rowspan=span),
    ]
    if not phase.groups:
        return [el("tr", *lead, *(el("td", MISSING) for _ in range(4)), class_="first")]
    rows = []
    for index, group in enumerate(phase.groups):
        cells = [
            el("td", group.name),
            el("td", number(group.lr), class_="num"),
            el("td", number(group.weight_decay), class_="num"),
            el("td", f"{group.parameters:,}", class_="num"),
        ]
        own = lead if index == 0 else []
        rows.append(el("tr", *own, *cells, class_="first" if index == 0 else None))
    return rows


def _between(record: Record) -> Safe:
    """Where between zero-shot and fine-tuned weights it ended, and what else was tried."""
    found = record.interpolation
    if found is None:
        return Safe("")
    metric = record.experiment.objective.metric
    head = el("tr", el("th", "fine-tuned share", scope="col"), el("th", metric, scope="col"))
    rows = [
        el(
            "tr",
            el("td", f"{alpha:g}", class_="num"),
            el("td", el("b", score(value)) if alpha == found.alpha else score(value), class_="num"),
        )
        for alpha, value in sorted(found.objectives)
    ]
    table = el(
        "table", el("thead", head), el("tbody", *rows), aria_label="Weights between two models"
    )
    return figure(
        f"Its weights are {found.alpha:g} fine-tuned and {1 - found.alpha:g} zero-shot",
        scrolling(table, label="Weights between two models"),
        note="Chosen on validation, without training (WiSE-FT; Wortsman et al., CVPR 2022).",
    )


def _params(winner: TrialView, record: Record) -> Safe:
    """All parameters; those that were searched in bold and first."""
    params = record.params
    names = sorted(params, key=lambda name: (name not in winner.searched, name))
    items = [
        el(
            "div",
            el("dt", name),
            el("dd", MISSING if params[name] is None else value(params[name])),
            class_="searched" if name in winner.searched else None,
        )
        for name in names
    ]
    note = f"Searched values first, in bold. Input: {_input_text(record.experiment)}."
    return figure("Its parameters", el("dl", *items, class_="params"), note=note, class_="wide")


def _input_text(experiment: Experiment) -> str:
    contract, n_read = experiment.input, experiment.strategy.predict_views
    if isinstance(contract, TextContract) and contract.overlap is not None:
        return f"windows of {contract.size} tokens, which share {contract.overlap} with the next"
    if isinstance(contract, TextContract):
        read = f"the first {n_read} windows" if n_read > 1 else "the first window"
        return f"{read} of {contract.size} tokens of a text"
    return (
        f"{contract.size} × {contract.size} pixels, {contract.interpolation}, the centre "
        f"{contract.crop_fraction:g} of the shorter side"
    )


def _behaviour(predictions: Predictions, preview: Preview | None) -> list[Safe]:
    details = build_task(predictions.task).details(predictions.probs, predictions.truth)
    split, kind = predictions.split, predictions.task.kind
    labels = tuple(details.get("confusion_labels", predictions.task.labels))
    calibration = reliability(
        details["reliability"],
        split=split,
        multi_label=predictions.multi_label,
        unit="words" if kind == "token-classification" else "examples",
    )
    per_class = _per_class(details["per_class"], split, CALLED.get(kind, "class"))
    matrix = (
        confusion_table(np.asarray(details["confusion"], np.int64), labels, split=split)
        if details["confusion"] is not None
        else Safe("")
    )
    return [
        el("div", matrix, calibration, class_="pairs"),
        per_class,
        span_gallery(predictions) if by_position(kind) else gallery(predictions, preview),
    ]


def _per_class(rows: Sequence[Mapping[str, Any]], split: str, called: str) -> Safe:
    known = ("precision", "recall", "exact_match", "f1", "roc_auc", "support")
    titles = [title for title in known if any(title in row for row in rows)]
    head = [el("th", called, scope="col", data_sort="yes")]
    head += [el("th", t, scope="col", class_="num", data_sort="yes") for t in titles]
    body = [_class_row(row, titles) for row in rows]
    table = el(
        "table",
        el("thead", el("tr", *head)),
        el("tbody", *body),
        class_="sortable bars",
        aria_label=f"Metrics by {called}",
    )
    return figure(
        _weakest(rows, called),
        scrolling(table, label=f"Metrics by {called}", class_="scroll tall"),
        note=f"On {split}.",
        class_="wide",
    )


def _weakest(rows: Sequence[Mapping[str, Any]], called: str) -> str:
    seen = [row for row in rows if row["support"]]
    if len(seen) < 2:
        return f"Metrics by {called}"
    weakest = min(seen, key=lambda row: float(row["f1"]))
    recall = f", recall {score(weakest['recall'])}" if "recall" in weakest else ""
    return (
        f"Weakest {called}: “{str(weakest['label'])[:40]}”, F1 {score(weakest['f1'])}{recall} over "
        f"{weakest['support']:,} examples"
    )


def _class_row(row: Mapping[str, Any], titles: Sequence[str]) -> Safe:
    cells = [el("th", str(row["label"]), scope="row", data_v=str(row["label"]))]
    for title in titles:
        known = row[title]
        if known is None:
            cells.append(el("td", MISSING, class_="num"))
            continue
        shown = f"{known:,}" if title == "support" else score(known)
        style = None if title == "support" else f"--share:{100 * float(known):.0f}%"
        class_ = "num" if title == "support" else "num bar-cell"
        cells.append(el("td", shown, class_=class_, style=style, data_v=f"{known:.6g}"))
    return el("tr", *cells)
