"""Data sheet: how many examples of each class each split has, and what the audit found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.report.figures import figure, scrolling
from orchestrator.report.markup import Safe, el
from orchestrator.report.sweep_view import SweepView
from orchestrator.report.wording import finite, number, plural

SPLITS = ("train", "validation", "test")
MOST_ITEMS = 5
LEVELS = {"error": "high", "warning": "mid"}
Counts = Mapping[str, Mapping[str, int]]


def data_sheet(view: SweepView) -> list[Safe]:
    """The parts of the data section."""
    counts = _counts(view)
    parts = [_table(view, counts)] if counts else []
    if not parts:
        parts.append(
            el("p", "The sweep's folder does not say how its data is split.", class_="empty")
        )
    findings = view.data.get("audit")
    if isinstance(findings, Sequence):
        parts.append(_audit([f for f in findings if isinstance(f, Mapping)]))
    return parts


def _counts(view: SweepView) -> Counts:
    given = view.data.get("counts")
    if not isinstance(given, Mapping):
        return {}
    return {
        str(split): {str(label): int(finite(n) or 0) for label, n in by_label.items()}
        for split, by_label in given.items()
        if isinstance(by_label, Mapping) and by_label
    }


def _table(view: SweepView, counts: Counts) -> Safe:
    splits = [s for s in SPLITS if s in counts] + sorted(counts.keys() - {*SPLITS})
    named = view.task.labels if view.task else ()
    labels = list(dict.fromkeys([*named, *(label for s in splits for label in counts[s])]))
    most = {split: max(counts[split].values(), default=0) for split in splits}
    head = [el("th", "class", scope="col", data_sort="yes")]
    head += [el("th", split, scope="col", class_="num", data_sort="yes") for split in splits]
    rows = [
        el(
            "tr",
            el("th", label, scope="row", data_v=label),
            *(_cell(counts[split].get(label, 0), most[split]) for split in splits),
        )
        for label in labels
    ]
    totals = [el("td", f"{sum(counts[s].values()):,}", class_="num") for s in splits]
    table = el(
        "table",
        el("thead", el("tr", *head)),
        el("tbody", *rows),
        el("tfoot", el("tr", el("th", "in all", scope="row"), *totals)),
        class_="sortable bars",
        aria_label="Examples by class and split",
    )
    return figure(
        _title(counts),
        scrolling(table, label="Examples by class and split", class_="scroll tall"),
        class_="wide",
    )


def _title(counts: Counts) -> str:
    train = counts.get("train") or next(iter(counts.values()))
    most, least = max(train, key=lambda k: train[k]), min(train, key=lambda k: train[k])
    if len(train) < 2 or not train[least]:
        return f"{plural(len(train), 'class')}" if len(train) == 1 else f"{len(train)} classes"
    ratio = train[most] / train[least]
    if ratio < 1.5:
        return f"{len(train)} classes of about equal size"
    return (
        f"“{most[:40]}” has {number(round(ratio, 1))} times the training examples of “{least[:40]}”"
    )


def _cell(count: int, most: int) -> Safe:
    share = 100 * count / most if most else 0
    return el(
        "td", f"{count:,}", class_="num bar-cell", style=f"--share:{share:.0f}%", data_v=str(count)
    )


def _audit(findings: Sequence[Mapping[str, Any]]) -> Safe:
    if not findings:
        return figure("The audit found nothing wrong with the data", class_="wide")
    order = {"error": 0, "warning": 1}
    ranked = sorted(findings, key=lambda f: order.get(str(f.get("severity")), 2))
    items = [_finding(finding) for finding in ranked]
    return figure(
        f"The audit has {plural(len(findings), 'finding')}",
        el("ul", *items, class_="audit"),
        class_="wide",
    )


def _finding(finding: Mapping[str, Any]) -> Safe:
    severity = str(finding.get("severity") or "note")
    given = finding.get("items")
    items = [str(item) for item in given] if isinstance(given, list) else []
    count = int(finite(finding.get("count")) or len(items))
    more = count - min(len(items), MOST_ITEMS)
    shown = [el("li", el("code", item)) for item in items[:MOST_ITEMS]]
    if shown and more > 0:
        shown.append(el("li", f"and {more:,} more"))
    return el(
        "li",
        el("span", severity, class_=f"badge sev-{LEVELS.get(severity, 'low')}"),
        el("span", str(finding.get("kind") or ""), class_="kind"),
        " ",
        str(finding.get("message") or ""),
        el("ul", *shown, class_="items") if shown else "",
    )
