"""Learning curves: a metric by epoch, the head's warm-up dashed, one panel a strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.report.axes import Frame, axes, svg
from orchestrator.report.figures import Variant, figure, responsive, variants
from orchestrator.report.marks import strategy_class
from orchestrator.report.markup import Safe, el, join
from orchestrator.report.scales import Linear, Scale, linear_over
from orchestrator.report.sweep_view import SweepView, TrialView
from orchestrator.report.wording import finite, plural, score, strategy_name
from orchestrator.spec.record import EpochRow

MOST_LINES = 40  # per strategy
FRAME = Frame(width=540, height=280, left=52, right=16, top=46, bottom=44)
WIDE = Frame(width=1080, height=330, left=56, right=150, top=48, bottom=44)
NARROW = Frame(width=430, height=300, left=44, right=118, top=48, bottom=44)

Getter = Callable[[EpochRow], float | None]
Point = tuple[int, float]


def learning_curves(view: SweepView) -> Safe:
    """The figure over all trials, or a sentence where no record has epochs."""
    with_epochs = [t for t in view.trials if t.record and t.record.epochs]
    if not with_epochs:
        return el("p", "No trial's record lists epochs.", class_="empty")
    names: list[str] = [view.objective.metric]
    names += sorted({m for t in with_epochs for m in _epochs(t)[-1].validation} - {*names})
    choices = [(f"validation {name}", _validation(name)) for name in names]
    choices.append(("training loss", lambda row: finite(row.train_loss)))
    drawn = [v for name, get in choices if (v := _variant(view, with_epochs, name, get))]
    if not drawn:
        return el("p", "No epoch has a finite metric.", class_="empty")
    note = (
        "Dashed: the warm-up, in which only the head learns. Thick: the strategy's best trial; "
        "orange: the winner, its best epoch ringed."
    )
    crowded = [s for s in view.strategies if _count(with_epochs, s) > MOST_LINES]
    if crowded:
        note += f" Panels draw the best {MOST_LINES} trials of a strategy."
    return figure(
        f"How each strategy learns: `{view.objective.metric}` after every epoch",
        variants(drawn, what="Metric"),
        note=note,
        class_="wide",
    )


def winner_curves(view: SweepView) -> Safe:
    """The winner's training and validation loss over its phases."""
    winner = view.winner
    if winner is None or winner.record is None or len(winner.record.epochs) < 2:
        return Safe("")
    train = _points(winner, lambda row: finite(row.train_loss))
    held_out = _points(winner, _validation("log_loss"))
    both = [y for _, y in train + held_out]
    if not both:
        return Safe("")

    def draw(wide: bool) -> Safe:
        return _winner_drawing(winner, train, held_out, WIDE if wide else NARROW)

    note = (
        "The ring marks the best epoch by the objective. Training loss includes label smoothing, "
        "augmentation and class weights where they were set, validation loss does not: compare "
        "their courses, not their heights."
    )
    return figure(_winner_title(winner, held_out), responsive(draw), note=note, class_="wide")


def _winner_drawing(
    winner: TrialView, train: Sequence[Point], held_out: Sequence[Point], frame: Frame
) -> Safe:
    x = _epoch_scale([winner])
    y = linear_over([v for _, v in [*train, *held_out]], pad=0.08, most_ticks=5)
    spoken = [
        f"{name} loss goes from {score(points[0][1])} to {score(points[-1][1])}"
        for name, points in (("training", train), ("validation", held_out))
        if points
    ]
    close = train and held_out and abs(y(train[-1][1]) - y(held_out[-1][1])) < 0.08
    apart = 9.0 if close else 0.0  # labels at the lines' ends must not cover each other
    above = apart if close and train[-1][1] > held_out[-1][1] else -apart
    return svg(
        frame,
        _phase_bands(frame, winner, x),
        axes(frame, x, y, x_title="epoch", y_title="loss, nats"),
        _labelled(frame, x, y, train, "training", "train", shift=-above),
        _labelled(frame, x, y, held_out, "validation", "held-out", shift=above),
        _ring(frame, x, y, held_out, winner.best_epoch),
        alternative=f"The winner's {', its '.join(spoken)}.",
    )


def _winner_title(winner: TrialView, held_out: Sequence[Point]) -> str:
    n, best = winner.n_epochs, winner.best_epoch
    if best is None:
        return "How the winner learned"
    if best == n:
        return f"The winner was still improving at its last epoch, {n}"
    if held_out and held_out[-1][1] > 1.05 * min(y for _, y in held_out):
        return f"The winner was best after epoch {best} of {n}; its validation loss rises later"
    return f"The winner was best after epoch {best} of {n}"


def _epochs(trial: TrialView) -> tuple[EpochRow, ...]:
    return trial.record.epochs if trial.record else ()


def _count(trials: Sequence[TrialView], strategy: str) -> int:
    return sum(t.strategy == strategy for t in trials)


def _validation(metric: str) -> Getter:
    return lambda row: finite(row.validation.get(metric))


def _points(trial: TrialView, get: Getter) -> list[Point]:
    return [(row.epoch, y) for row in _epochs(trial) if (y := get(row)) is not None]


def _epoch_scale(trials: Sequence[TrialView]) -> Linear:
    last = max((row.epoch for t in trials for row in _epochs(t)), default=1)
    return Linear(0.5, last + 0.5, most_ticks=max(1, min(8, last)))


def _variant(
    view: SweepView, trials: Sequence[TrialView], name: str, get: Getter
) -> Variant | None:
    shown = {s: [t for t in trials if t.strategy == s][:MOST_LINES] for s in view.strategies}
    values = [y for ts in shown.values() for t in ts for _, y in _points(t, get)]
    if not values:
        return None
    y = linear_over(_without_outliers(values), pad=0.05, most_ticks=5)
    x = _epoch_scale([t for ts in shown.values() for t in ts])
    panels = [_panel(view, s, ts, name, get, x, y) for s, ts in shown.items() if ts]
    return Variant(name, el("div", *panels, class_="pairs"))


def _without_outliers(values: list[float]) -> list[float]:
    """All but what lies far above the rest: one diverging loss must not flatten the others."""
    ordered = sorted(values)
    middle, high = ordered[len(ordered) // 2], ordered[int(0.9 * (len(ordered) - 1))]
    limit = high + 3 * max(high - middle, 1e-9)
    return [v for v in ordered if v <= limit]


def _panel(
    view: SweepView,
    strategy: str,
    trials: Sequence[TrialView],
    name: str,
    get: Getter,
    x: Scale,
    y: Linear,
) -> Safe:
    lines = [_trial_line(view, t, i == 0, get, x, y) for i, t in enumerate(trials)]
    best = trials[0]
    alternative = (
        f"{name} by epoch for {plural(len(trials), 'trial')} of {strategy}; the best reaches "
        f"{view.objective.metric} {score(best.objective)} at epoch {best.best_epoch}."
    )
    return svg(
        FRAME,
        axes(FRAME, x, y, x_title="epoch", y_title=name),
        el(
            "text",
            f"{strategy_name(strategy)}, {plural(len(trials), 'trial')}",
            class_="name end",
            x=FRAME.width - FRAME.right,
            y=14.0,
        ),
        join(reversed(lines)),
        alternative=alternative,
    )


def _trial_line(
    view: SweepView, trial: TrialView, best: bool, get: Getter, x: Scale, y: Linear
) -> Safe:
    points = [(e, min(max(v, y.low), y.high)) for e, v in _points(trial, get)]
    if not points:
        return Safe("")
    warm = trial.warm_up_epochs
    class_ = f"curve {strategy_class(trial.strategy)}{' best' if best else ''}"
    if trial is view.winner:
        class_ += " winner"
    parts = []
    if warm:
        head = [p for p in points if p[0] <= warm + 1]
        parts.append(el("path", class_=f"{class_} warm", d=_path(FRAME, x, y, head)))
    body = [p for p in points if p[0] > warm]
    if body:
        parts.append(el("path", class_=class_, d=_path(FRAME, x, y, body)))
    if trial is view.winner:
        parts.append(_ring(FRAME, x, y, points, trial.best_epoch))
    return el("g", *parts, data_t=trial.id)


def _path(frame: Frame, x: Scale, y: Scale, points: Sequence[Point]) -> str:
    places = [f"{frame.x(x(e)):.1f},{frame.y(y(v)):.1f}" for e, v in points]
    if len(places) == 1:  # a dot, so that a single epoch is seen
        return f"M{places[0]}h.1"
    return "M" + "L".join(places)


def _ring(frame: Frame, x: Scale, y: Scale, points: Sequence[Point], epoch: int | None) -> Safe:
    found = [v for e, v in points if e == epoch]
    if not found or epoch is None:
        return Safe("")
    return el("circle", class_="ring", cx=frame.x(x(epoch)), cy=frame.y(y(found[0])), r=5)


def _labelled(
    frame: Frame,
    x: Scale,
    y: Scale,
    points: Sequence[Point],
    name: str,
    class_: str,
    *,
    shift: float,
) -> Safe:
    if not points:
        return Safe("")
    epoch, last = points[-1]
    return join(
        [
            el("path", class_=f"curve best {class_}", d=_path(frame, x, y, points)),
            el(
                "text",
                f"{name} {score(last)}",
                class_=f"name {class_}",
                x=frame.x(x(epoch)) + 8,
                y=frame.y(y(last)) + 4 + shift,
            ),
        ]
    )


def _phase_bands(frame: Frame, winner: TrialView, x: Scale) -> Safe:
    """The phases as named bands behind the curves, every other one shaded."""
    parts, start = [], 0
    phases = winner.record.phases if winner.record else ()
    last = len(_epochs(winner))
    for index, phase in enumerate(phases):
        end = min(start + phase.epochs, last)
        if end <= start:
            break
        left, right = frame.x(x(start + 0.5)), frame.x(x(end + 0.5))
        parts.append(
            el(
                "rect",
                class_="band shaded" if index % 2 == 0 and len(phases) > 1 else "band",
                x=left,
                y=frame.y(1),
                width=right - left,
                height=frame.y(0) - frame.y(1),
            )
        )
        if right - left > 6.5 * len(phase.name) + 10:
            parts.append(el("text", phase.name, class_="tick", x=left, y=frame.y(1) - 6))
        start = end
    return join(parts)
