"""The report: one HTML file that holds all it needs and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from importlib.resources import files
from pathlib import Path

from orchestrator.report.adaptation import adaptation, adaptations
from orchestrator.report.comparison import Comparison, compare
from orchestrator.report.data_sheet import data_sheet
from orchestrator.report.figures import section
from orchestrator.report.gallery import Preview
from orchestrator.report.headline import headline
from orchestrator.report.hints import hints
from orchestrator.report.leaderboard import leaderboard
from orchestrator.report.learning_curves import learning_curves
from orchestrator.report.markup import Safe, el
from orchestrator.report.parallel_coordinates import parallel_coordinates
from orchestrator.report.parameter_panels import parameter_panels
from orchestrator.report.pareto import pareto
from orchestrator.report.provenance import provenance
from orchestrator.report.reading import read_sweep
from orchestrator.report.screening import screening
from orchestrator.report.strategy_strip import strategy_strip
from orchestrator.report.sweep_view import SweepView
from orchestrator.report.winner_sheet import winner_sheet
from orchestrator.spec import mirror

ANCHORS = {
    "leaderboard": "Leaderboard",
    "search": "Search",
    "cost": "Cost",
    "learning": "Learning",
    "winner": "Winner",
    "data": "Data",
    "provenance": "Provenance",
}


def write_report(sweep_dir: Path, *, preview: Preview | None = None) -> Path:
    """Write `report.html` into a sweep's folder, whole or not at all.

    Args:
        sweep_dir: The folder, local.
        preview: From a split's name and an example's row to JPEG or PNG bytes, to a text, or None
            where there is neither. Without it the page shows no examples.

    Returns:
        The file.

    Raises:
        SpecError: The folder is no sweep's.
    """
    page = render(read_sweep(sweep_dir), preview=preview)
    target = sweep_dir / "report.html"
    handle, name = tempfile.mkstemp(dir=sweep_dir, prefix=".report-", suffix=".html")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(page.encode("utf-8", errors="replace"))  # a lone surrogate in a label
            out.flush()
            os.fsync(out.fileno())
        temporary.chmod(0o644)
        mirror.put(temporary, target)
        mirror.put(temporary, target)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def render(view: SweepView, *, preview: Preview | None = None) -> str:
    """The page's HTML."""
    style, script = _asset("style.css"), _asset("script.js")
    body = el(
        "body",
        el("a", "Skip to the leaderboard", href="#leaderboard", class_="skip"),
        _navigation(view),
        el("main", *_sections(view, compare(view), preview)),
        el("div", id="tip", role="status", hidden="hidden"),
        el("script", Safe(script)),
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        el("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        el("title", f"{view.name}: sweep report"),
        el("style", Safe(style)),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _asset(name: str) -> str:
    return files("orchestrator.report").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Only our own script runs, and nothing is fetched, whatever a label says."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _navigation(view: SweepView) -> Safe:
    links = [el("a", title, href=f"#{anchor}") for anchor, title in ANCHORS.items()]
    return el(
        "nav", el("a", view.name, href="#headline", class_="home"), *links, aria_label="Parts"
    )


def _sections(view: SweepView, comparison: Comparison, preview: Preview | None) -> list[Safe]:
    metric, adapted = view.objective.metric, adaptations(view)
    direction = "higher" if view.objective.mode == "max" else "lower"
    return [
        headline(view, comparison, hints(view, comparison)),
        section(
            "leaderboard",
            "Leaderboard",
            leaderboard(view, comparison, adapted),
            lead=f"Ranked by `{metric}` on validation at each trial's best epoch; {direction} is "
            "better." + (" ≈ marks trials within noise of the winner." if comparison.ties else ""),
        ),
        section(
            "search",
            "The search",
            parallel_coordinates(view),
            parameter_panels(view),
            screening(view),
            adaptation(view, adapted),
        ),
        section("cost", "Score against cost", pareto(view), strategy_strip(view)),
        section("learning", "Learning", learning_curves(view)),
        section("winner", "The winner", *winner_sheet(view, preview)),
        section("data", "Data", *data_sheet(view)),
        section("provenance", "How it was run", *provenance(view)),
    ]
