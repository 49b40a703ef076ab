"""Strategy strip: every Trial's gain over the scratch baseline, one row a strategy."""

from __future__ import annotations

from orchestrator.report.axes import Frame, svg
from orchestrator.report.figures import figure, responsive
from orchestrator.report.marks import mark, spread
from orchestrator.report.markup import Safe, el, join
from orchestrator.report.scales import Linear, linear_over
from orchestrator.report.sweep_view import SweepView, TrialView
from orchestrator.report.wording import listed, score, signed, strategy_name

ROW_HEIGHT = 64.0

Rows = dict[str, list[tuple[TrialView, float]]]


def gains(view: SweepView) -> Rows:
    """Each strategy's trials with their gain over the baseline, or their score without one.

    Positive is better for gains, whichever way the objective goes.
    """
    sign = 1 if view.objective.mode == "max" else -1
    base = view.baseline.objective if view.baseline else None
    rows: Rows = {}
    for trial in view.scored:
        if trial.objective is not None:
            shown = trial.objective if base is None else sign * (trial.objective - base)
            rows.setdefault(trial.strategy, []).append((trial, shown))
    return {s: rows[s] for s in view.strategies if s in rows}


def strategy_strip(view: SweepView) -> Safe:
    """The figure; without a baseline it shows the scores themselves and says so."""
    rows = gains(view)
    if not rows:
        return Safe("")
    based = view.baseline is not None
    best = {s: points[0] for s, points in rows.items()}
    show = signed if based else score
    phrases = [f"{strategy_name(s)} {show(g)}" for s, (_, g) in best.items() if s != "scratch"]
    metric = view.objective.metric
    if based:
        title = f"What pretraining buys in `{metric}`: {listed(phrases or ['nothing else ran'])}"
        note = (
            f"Each mark is a trial, its best named. Zero is the best trial from scratch "
            f"({score(view.baseline.objective if view.baseline else None)}); right is better."
        )
    else:
        title = f"How the strategies compare in `{metric}`"
        note = (
            "No scratch baseline ran, so gains over it are unknown. A search block with "
            "`strategy: scratch` adds one."
        )
    return figure(
        title, responsive(lambda wide: _drawing(view, rows, based, wide)), note=note, class_="wide"
    )


def _drawing(view: SweepView, rows: Rows, based: bool, wide: bool) -> Safe:
    height = 56 + ROW_HEIGHT * len(rows)
    frame = (
        Frame(width=1080, height=height, left=190, right=60, top=8, bottom=48)
        if wide
        else Frame(width=430, height=height, left=12, right=44, top=8, bottom=48)
    )
    values = [shown for points in rows.values() for _, shown in points]
    x = linear_over([*values, 0.0] if based else values, pad=0.05, most_ticks=8)
    metric = view.objective.metric
    title = f"gain in {metric} over scratch →" if based else f"{metric} →"
    parts = [_grid(frame, x, based)]
    for index, (strategy, points) in enumerate(rows.items()):
        parts.append(_row(view, frame, x, strategy, points, index, based))
    parts.append(
        el("text", title, class_="axis-title end", x=frame.width - frame.right, y=frame.height - 6)
    )
    spoken = "; ".join(
        f"{strategy}: best {points[0][1]:.3f} of {len(points)}" for strategy, points in rows.items()
    )
    what = f"Gain in {metric} over the scratch baseline" if based else f"{metric} by strategy"
    return svg(frame, *parts, alternative=f"{what}. {spoken}.")


def _grid(frame: Frame, x: Linear, based: bool) -> Safe:
    parts = []
    bottom = frame.height - frame.bottom
    for tick in x.ticks():
        at = frame.x(tick.at)
        zero = based and abs(at - frame.x(x(0.0))) < 0.01
        class_ = "base" if zero else "grid"
        parts.append(el("line", class_=class_, x1=at, x2=at, y1=frame.top, y2=bottom))
        parts.append(el("text", tick.label, class_="tick middle", x=at, y=bottom + 18))
    return join(parts)


def _row(
    view: SweepView,
    frame: Frame,
    x: Linear,
    strategy: str,
    points: list[tuple[TrialView, float]],
    index: int,
    based: bool,
) -> Safe:
    middle = frame.top + ROW_HEIGHT * (index + 0.5)
    marks = [
        mark(
            trial,
            frame.x(x(shown)),
            middle + (0 if i == 0 else 0.5 * ROW_HEIGHT * spread(i)),
            winner=trial is view.winner,
        )
        for i, (trial, shown) in enumerate(points)
    ]
    best = points[0][1]
    raised = 5 if frame.left > 100 else -20  # beside the row, or above it where space is short
    at = frame.x(x(best))
    return join(
        [
            el(
                "text",
                strategy_name(strategy),
                class_="row-name",
                x=4.0,
                y=middle + raised,
            ),
            el("g", *reversed(marks)),
            el(
                "text",
                "" if points[0][0] is view.baseline else signed(best) if based else score(best),
                class_="name halo",
                x=at + 10,
                y=middle - 10,
            ),
        ]
    )
