"""Parameter panels: the score against each searched value, one small chart each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.association import rank_correlation, stands_out
from orchestrator.report.axes import Frame, axes, svg
from orchestrator.report.figures import figure
from orchestrator.report.marks import cross, mark, spread, strategy_key
from orchestrator.report.markup import Safe, el, join
from orchestrator.report.scales import Choice, Scale, linear_over, scale_over
from orchestrator.report.sweep_view import SweepView, TrialView
from orchestrator.report.wording import finite, plural

MOST_PANELS = 12
MOST_POINTS = 4000  # over all panels
FRAME = Frame(width=350, height=230, left=46, right=14, top=30, bottom=44)


@dataclass(frozen=True)
class Panel:
    """One searched value: the trials that set it, and how its rank goes with the score's."""

    parameter: str
    trials: tuple[TrialView, ...]
    correlation: float | None

    def get(self, trial: TrialView) -> Any:
        """The trial's value."""
        return trial.backbone if self.parameter == "backbone" else trial.searched[self.parameter]


def panels_of(view: SweepView) -> list[Panel]:
    """The panels, the strongest association first."""
    panels = [
        _panel(view, key, tuple(t for t in view.trials if key in t.searched))
        for key in view.parameters
    ]
    if len({t.backbone for t in view.trials}) > 1:
        panels.append(Panel("backbone", view.trials, None))
    shown = [panel for panel in panels if any(t.scored for t in panel.trials)]
    return sorted(shown, key=lambda p: -abs(p.correlation or 0.0))


def parameter_panels(view: SweepView) -> Safe:
    """The figure, or nothing where no value was searched."""
    panels = panels_of(view)
    if not panels:
        return Safe("")
    scores = [t.objective for t in view.scored if t.objective is not None]
    y = linear_over(scores, pad=0.08, most_ticks=4)
    shown = panels[:MOST_PANELS]
    most = max(1, MOST_POINTS // len(shown))
    note = (
        "ρ is Spearman's rank correlation with the score over the trials that set the value. "
        "It is an association within this search, not the effect of changing one thing."
    )
    if len(panels) > MOST_PANELS:
        note += f" {MOST_PANELS} of {len(panels)} values are shown, by strength."
    if max(len(p.trials) for p in shown) > most:
        note += f" Each panel draws its best {most} trials."
    unscored = any(not t.scored for t in view.trials)
    return figure(
        _title(view, panels),
        el("div", *(_drawing(view, p, y, most) for p in shown), class_="panels"),
        note=note,
        legend=strategy_key(view.strategies, crosses=unscored),
        class_="wide",
    )


def _panel(view: SweepView, key: str, trials: tuple[TrialView, ...]) -> Panel:
    pairs = [
        (known, t.objective)
        for t in trials
        if t.scored and t.objective is not None and (known := finite(t.searched[key])) is not None
    ]
    complete = len(pairs) == sum(t.scored for t in trials)
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    return Panel(key, trials, rank_correlation(xs, ys) if complete else None)


def _title(view: SweepView, panels: Sequence[Panel]) -> str:
    metric = view.objective.metric
    for panel in panels:
        n = sum(trial.scored for trial in panel.trials)
        if panel.correlation is not None and stands_out(panel.correlation, n):
            direction = "higher" if panel.correlation > 0 else "lower"
            return f"The larger `{panel.parameter}`, the {direction} `{metric}` in this search"
    return f"No single value decides `{metric}` beyond chance in this search"


def _drawing(view: SweepView, panel: Panel, y: Scale, most: int) -> Safe:
    trials = panel.trials[:most]
    x = scale_over([panel.get(t) for t in trials], view.course_of(panel.parameter))
    points = [_point(view, panel, trial, index, x, y) for index, trial in enumerate(trials)]
    rho = "" if panel.correlation is None else f"  ρ {panel.correlation:+.2f}".replace("-", "−")
    alternative = (
        f"{view.objective.metric} against {panel.parameter} for {plural(len(trials), 'trial')}"
        + ("." if panel.correlation is None else f"; rank correlation {panel.correlation:.2f}.")
    )
    longest = 12 if isinstance(x, Choice) and len(x.values) > 2 else 20
    return svg(
        FRAME,
        axes(FRAME, x, y, x_title=panel.parameter, y_title=view.objective.metric, longest=longest),
        el("text", rho, class_="axis-title end rho", x=FRAME.width - FRAME.right, y=14.0),
        join(reversed(points)),
        alternative=alternative,
    )


def _point(view: SweepView, panel: Panel, trial: TrialView, index: int, x: Scale, y: Scale) -> Safe:
    fraction = x(panel.get(trial))
    if isinstance(x, Choice):
        fraction += 0.5 * x.band * spread(index)
    if trial.objective is None or not trial.scored:
        return cross(trial, FRAME.x(fraction), FRAME.y(0) - 6)
    return mark(trial, FRAME.x(fraction), FRAME.y(y(trial.objective)), winner=trial is view.winner)
