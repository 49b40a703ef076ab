"""Headline: who won, by how much, how surely, and at what price."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.comparison import Comparison, Standing
from orchestrator.report.figures import figure
from orchestrator.report.forest import forest
from orchestrator.report.hints import Hint
from orchestrator.report.intervals import Gain
from orchestrator.report.markup import Safe, el, join, prose
from orchestrator.report.sweep_view import SweepView
from orchestrator.report.wording import duration, plural, score, signed, strategy_name

STATUSES = ("finished", "stopped", "diverged", "failed")
ENDINGS = {
    "budget": "Its budget ran out; the same command with a larger one continues it.",
    "interrupted": "It was interrupted; the same command continues it.",
}


def headline(view: SweepView, comparison: Comparison, found: Sequence[Hint]) -> Safe:
    """The page's header."""
    kind = view.task.kind.replace("-", " ") if view.task else "sweep"
    return el(
        "header",
        el("p", f"Sweep of {view.name} · {kind}", class_="kicker"),
        _title(view),
        el("p", ENDINGS[view.status], class_="lead") if view.status in ENDINGS else "",
        el("div", _score_block(view, comparison), _evidence(view, comparison), class_="verdict"),
        _tiles(view, comparison),
        _hint_list(found),
        _notes(view),
        id="headline",
    )


def _title(view: SweepView) -> Safe:
    winner = view.winner
    if winner is None:
        said = "No trial has ended yet" if not view.trials else "No trial has a score"
        return el("h1", said)
    return el("h1", strategy_name(winner.strategy), " of ", el("code", winner.backbone), " wins")


def _score_block(view: SweepView, comparison: Comparison) -> Safe:
    if not comparison.standings:
        words = "There is nothing to promote. The trials and their reasons are listed below."
        return el("p", words, class_="lead")
    first = comparison.standings[0]
    return el(
        "div",
        el("p", score(first.score), class_="score"),
        el("p", _score_words(view, first), class_="score-words"),
        _accuracy(view),
        class_="score-block",
    )


def _score_words(view: SweepView, first: Standing) -> Safe:
    parts = [el("code", view.objective.metric), f" on {first.split}"]
    n = view.test.n if view.test and first.split == "test" else None
    if n is None and view.predictions and view.predictions.split == first.split:
        n = len(view.predictions)
    parts.append(f", {plural(n, 'example')}." if n else ".")
    if first.interval:
        parts.append(f" 95 % interval {score(first.interval.low)} – {score(first.interval.high)}.")
    if first.split == "validation":
        parts.append(" Validation also chose this trial, so expect a little less on new data.")
    else:
        parts.append(" The test split was read once, by the winner, after the search.")
    return join(parts)


def _accuracy(view: SweepView) -> Safe:
    """Accuracy with its interval, where the objective is another metric."""
    test = view.test
    if test is None or view.objective.metric == "accuracy" or "accuracy" not in test.metrics:
        return Safe("")
    words = f"Accuracy on test {score(test.metrics['accuracy'])}"
    if pair := test.intervals.get("accuracy"):
        words += f", 95 % interval {score(pair[0])} – {score(pair[1])}"
    return el("p", f"{words}.", class_="score-words")


def _evidence(view: SweepView, comparison: Comparison) -> Safe:
    if not comparison.standings:
        return Safe("")
    return figure(
        _evidence_title(comparison),
        forest(comparison.standings, metric=view.objective.metric),
    )


def _evidence_title(comparison: Comparison) -> str:
    clear: list[str] = []
    unclear: list[str] = []
    for name, gain in (
        ("its default", comparison.over_default),
        ("training from scratch", comparison.over_baseline),
        ("zero-shot", comparison.over_floor),
    ):
        if gain is not None and gain.interval is not None:
            (clear if gain.clear and gain.value > 0 else unclear).append(name)
    if clear and not unclear:
        return f"The winner is clearly better than {' and '.join(clear)}"
    if clear:
        return f"Clearly better than {clear[0]}; within noise of {unclear[0]}"
    if unclear:
        return f"Within noise of {' and '.join(unclear)}"
    return "How sure the score is"


def _tiles(view: SweepView, comparison: Comparison) -> Safe:
    tiles = [
        _gain_tile("Gain over scratch", comparison.over_baseline, _no_baseline(view)),
        *_floor_tile(view, comparison),
        _gain_tile("Gain over its vetted default", comparison.over_default, _no_default(view)),
        _tile("Wall time", duration(view.seconds), _compute(view)),
        _tile("Trials", f"{len(view.trials):,}", "", _endings(view)),
    ]
    return el("dl", *tiles, class_="tiles")


def _floor_tile(view: SweepView, comparison: Comparison) -> list[Safe]:
    """Only where labels alone were asked: most sweeps have no CLIP."""
    if view.floor is None:
        return []
    return [_gain_tile("Gain over zero-shot", comparison.over_floor, "Zero-shot itself won.")]


def _no_baseline(view: SweepView) -> str:
    if view.baseline is not None and view.baseline is view.winner:
        return "The baseline itself won."
    return "No scratch baseline ran."


def _no_default(view: SweepView) -> str:
    if view.winner is not None and view.winner.default:
        return "The winner is the default."
    return "The default has no score."


def _gain_tile(name: str, gain: Gain | None, otherwise: str) -> Safe:
    if gain is None:
        return _tile(name, "–", otherwise)
    words = "On validation."
    if gain.interval:
        low, high = signed(gain.interval.low), signed(gain.interval.high)
        words = f"On validation; paired 95 % interval {low} to {high}."
    return _tile(name, signed(gain.value), words)


def _compute(view: SweepView) -> str:
    total = sum(trial.seconds for trial in view.trials)
    return f"{duration(total)} in trials." if total else ""


def _tile(name: str, shown: str, words: str, extra: str = "") -> Safe:
    return el("div", el("dt", name), el("dd", shown, class_="figure"), el("dd", words, extra))


def _endings(view: SweepView) -> Safe:
    counts = {status: len(view.of(status)) for status in STATUSES}
    counts["unknown"] = len(view.trials) - sum(counts.values())
    present = [(status, count) for status, count in counts.items() if count]
    if not present:
        return Safe("None ended.")
    bar = el(
        "span",
        *(el("i", class_=f"st-{status}", style=f"flex:{count}") for status, count in present),
        class_="endings",
        aria_hidden="true",
    )
    return join([bar, ", ".join(f"{count} {status}" for status, count in present), "."])


def _hint_list(found: Sequence[Hint]) -> Safe:
    if not found:
        return Safe("")
    items = [
        el(
            "li",
            el("b", hint.title + "."),
            " ",
            prose(hint.sentence),
            class_=hint.severity,
        )
        for hint in found
    ]
    return el(
        "section",
        el("h2", "What to look at", id="hints-title"),
        el("ul", *items, class_="hints"),
        aria_labelledby="hints-title",
        id="hints",
    )


def _notes(view: SweepView) -> Safe:
    if not view.notes:
        return Safe("")
    items = [el("li", note) for note in view.notes[:20]]
    return el("div", el("b", "Not everything could be read."), el("ul", *items), class_="notes")
