"""Provenance: how the sweep was run, what was forecast, and how to run it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from orchestrator.report.figures import facts, figure, scrolling
from orchestrator.report.markup import Safe, el
from orchestrator.report.sweep_view import SweepView
from orchestrator.report.wording import (
    MISSING,
    duration,
    finite,
    memory,
    number,
    plural,
    score,
    value,
)
from orchestrator.spec.mirror import location_of


def provenance(view: SweepView) -> list[Safe]:
    """The parts of the section on how it was run."""
    return [
        _forecast(view),
        el("div", _identity(view), _environment(view), class_="pairs"),
        _again(view),
    ]


def _forecast(view: SweepView) -> Safe:
    rows = _forecast_rows(view)
    shared = [row for row in view.plan.get("shared") or () if isinstance(row, Mapping)]
    if not rows and not shared:
        return Safe("")
    title = "What the plan said, and what came"
    forecast, actual = view.plan.get("forecast"), view.plan.get("actual")
    said = finite(forecast.get("seconds")) if isinstance(forecast, Mapping) else None
    came = finite(actual.get("seconds")) if isinstance(actual, Mapping) else view.seconds
    if said and came:
        title = f"The sweep took {number(round(came / said, 2))} times its forecast"
    head = el("tr", *(el("th", t, scope="col") for t in ("", "forecast", "actual")))
    body = [el("tr", el("th", name, scope="row"), el("td", a), el("td", b)) for name, a, b in rows]
    table = el("table", el("thead", head), el("tbody", *body), aria_label="Forecast and actual")
    work = [_shared(row) for row in shared]
    return figure(
        title,
        scrolling(table, label="Forecast and actual") if rows else "",
        el("ul", *work, class_="shared") if work else "",
        class_="wide",
    )


def _forecast_rows(view: SweepView) -> list[tuple[str, str, str]]:
    rows = []
    planned = finite(view.plan.get("trials"))
    if planned is not None:
        rows.append(("trials", f"{planned:,.0f}", f"{len(view.trials):,}"))
    forecast, actual = view.plan.get("forecast"), view.plan.get("actual")
    came = actual if isinstance(actual, Mapping) else {}
    for key, said in forecast.items() if isinstance(forecast, Mapping) else ():
        known, real = finite(said), finite(came.get(key))
        if known is not None:
            shown = MISSING if real is None else _amount(str(key), real)
            rows.append((_spoken(str(key)), _amount(str(key), known), shown))
    return rows


def _spoken(key: str) -> str:
    if key == "seconds":
        return "wall time"
    if key == "device_seconds":
        return "device time of trials"
    return key.removesuffix("_bytes").removesuffix("_seconds").removesuffix("_s").replace("_", " ")


def _amount(key: str, known: float) -> str:
    if "bytes" in key:
        return memory(known)
    return duration(known) if key.endswith(("seconds", "_s")) else number(known)


def _shared(row: Mapping[str, Any]) -> Safe:
    what = str(row.get("what") or "work")
    trials, each = finite(row.get("trials")), finite(row.get("seconds_each"))
    passes, images = finite(row.get("forward_passes_saved")), finite(row.get("images"))
    words = ["computed once" if row.get("stored", True) else "recomputed in every epoch: no room"]
    if trials is not None:
        words.append(f"for {plural(int(trials), 'trial')}")
    if passes and images and each is not None:
        words.append(f"saving about {duration(passes / images * each)}")
    return el("li", el("b", what), f": {', '.join(words)}.")


def _identity(view: SweepView) -> Safe:
    rows = [
        ("sweep digest", el("code", view.digest or MISSING)),
        ("created", view.created_at or MISSING),
        ("folder", el("code", location_of(view.folder))),
        ("status", view.status),
    ]
    winner = view.winner
    if winner is not None and winner.record is not None:
        experiment = winner.record.experiment
        rows += [
            ("winner's experiment", el("code", experiment.digest)),
            ("data digest", el("code", experiment.data_digest)),
            ("weights digest", el("code", experiment.weights_digest)),
            ("winner started", winner.record.started_at or MISSING),
        ]
        if place := winner.record.placement:
            workers = f"{plural(place.workers, 'worker')}, {plural(place.threads, 'thread')}"
            shown = f"{place.host}, {place.device}, {workers}, {place.precision}"
            rows.append(("winner ran on", shown))
    if view.test is not None:
        scores = ", ".join(f"{k} {score(v)}" for k, v in view.test.metrics.items())
        rows.append(("winner on test", scores))
    return figure("Identity", facts(rows, label="Identity"))


def _environment(view: SweepView) -> Safe:
    rows = list(_flat(view.environment))
    if not rows:
        return Safe("")
    return figure("Environment", facts(rows, label="Environment"))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, found in tree.items():
        name = f"{prefix}{key}"
        if isinstance(found, Mapping):
            rows += _flat(found, f"{name}." if name != "versions" else "")
        else:
            rows.append((name, value(found)))
    return rows


def _again(view: SweepView) -> Safe:
    """The commands, and the whole spec, which as JSON is also YAML."""
    spec_file = f"{view.name}.yaml"
    folder = shlex.quote(location_of(view.folder))
    commands = [
        f"orchestrator sweep {shlex.quote(spec_file)}    # the spec below, saved under this name",
        f"orchestrator report {folder}",
    ]
    if view.winner is not None:
        commands.append(
            f"orchestrator promote {folder} --name {shlex.quote(view.name)} --alias champion"
        )
    spec = json.dumps(view.spec, indent=2, ensure_ascii=False)
    return figure(
        "To run it again",
        scrolling(el("pre", "\n".join(commands)), label="Commands"),
        el(
            "details",
            el("summary", "The resolved spec"),
            scrolling(el("pre", spec), label="The resolved spec", class_="scroll tall"),
        ),
        class_="wide",
    )
