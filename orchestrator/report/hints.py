"""Hints: what the records themselves say went wrong, or could go better. Nothing is guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.report.comparison import Comparison
from orchestrator.report.sweep_view import SweepView, TrialView
from orchestrator.report.wording import (
    duration,
    finite,
    listed,
    number,
    percent,
    plural,
    score,
    signed,
    value,
)

Severity = Literal["problem", "advice"]

OVERFIT_RISE = 1.05  # validation loss at the end over its minimum
HIGH_ECE = 0.08
EDGE_FRACTION = 0.03  # of the searched range, on its own scale


@dataclass(frozen=True)
class Hint:
    """One finding: what was seen, in numbers, and what to try."""

    severity: Severity
    title: str
    sentence: str


def hints(view: SweepView, comparison: Comparison) -> list[Hint]:
    """All findings, problems first."""
    found = [
        *_endings(view),
        *_negative_transfer(view),
        *_below_the_floor(view),
        *_overfit(view),
        *_gap_to_test(view),
        *_last_epoch(view),
        *_edges(view),
        *_ties(view, comparison),
        *_calibration(view),
    ]
    return sorted(found, key=lambda hint: hint.severity != "problem")


def _endings(view: SweepView) -> list[Hint]:
    found = []
    if diverged := view.of("diverged"):
        words = "Their loss became NaN or infinite."
        if threshold := _separating_rate(view, diverged):
            words += f" Every one had {threshold} Lower the upper end of that range."
        else:
            words += " Lower the rates or set `clip_norm`."
        found.append(Hint("problem", f"{plural(len(diverged), 'trial')} diverged", words))
    if failed := view.of("failed"):
        reasons: dict[str, int] = {}
        for trial in failed:
            reason = (trial.reason or "no reason recorded").splitlines()[0][:160]
            reasons[reason] = reasons.get(reason, 0) + 1
        words = "; ".join(f"{reason} ({n})" for reason, n in list(reasons.items())[:3])
        found.append(Hint("problem", f"{plural(len(failed), 'trial')} failed", f"{words}."))
    return found


def _separating_rate(view: SweepView, diverged: Sequence[TrialView]) -> str:
    """The rate above which all diverged and none was scored, as a clause, or nothing."""
    strategies = {trial.strategy for trial in diverged}
    for key in (k for k in view.parameters if k.endswith("lr")):
        bad = [finite(t.searched.get(key)) for t in diverged]
        good = [finite(t.searched.get(key)) for t in view.scored if t.strategy in strategies]
        known_bad, known_good = [b for b in bad if b], [g for g in good if g]
        if known_good and len(known_bad) == len(bad) and min(known_bad) > max(known_good):
            return (
                f"`{key}` of {number(min(known_bad))} or more; "
                f"none up to {number(max(known_good))} did."
            )
    return ""


def _negative_transfer(view: SweepView) -> list[Hint]:
    base = view.baseline.objective if view.baseline else None
    if base is None:
        return []
    pretrained = [t for t in view.scored if t.strategy != "scratch" and t.objective is not None]
    worse = [t for t in pretrained if view.objective.better(base, t.objective)]
    if not worse:
        return []
    strategies = sorted({t.strategy for t in worse})
    everywhere = [s for s in strategies if all(t in worse for t in pretrained if t.strategy == s)]
    words = f"They score below the scratch baseline ({score(base)})."
    if everywhere:
        words += (
            f" No trial of {listed(everywhere)} beats it: these features may not suit this data. "
            "Try another backbone, or unfreeze more."
        )
    title = f"Negative transfer in {len(worse)} of {plural(len(pretrained), 'pretrained trial')}"
    return [Hint("problem", title, words)]


def _below_the_floor(view: SweepView) -> list[Hint]:
    """Training that did not get above what labels alone give."""
    floor = view.floor
    trained = [t for t in view.scored if t.strategy not in ("zero-shot", "scratch")]
    if floor is None or not trained or view.winner is not floor:
        return []
    words = (
        f"Zero-shot scores {score(floor.objective)} without training, the best of "
        f"{plural(len(trained), 'trained trial')} {score(trained[0].objective)}. Try `head: text`, "
        "which starts from it, lower rates, `wise_ft: true`, or more data."
    )
    return [Hint("advice", "Training did not beat zero-shot", words)]


def overfits(trial: TrialView) -> bool:
    """Whether its training loss kept falling while its validation loss rose clearly."""
    rows = trial.record.epochs if trial.record else ()
    losses = [finite(row.validation.get("log_loss")) for row in rows]
    known = [loss for loss in losses if loss is not None]
    if len(known) < 4 or len(known) < len(rows):
        return False
    turn = known.index(min(known))
    rising = known[-1] > OVERFIT_RISE * known[turn] and turn <= len(known) - 3
    return rising and rows[-1].train_loss < rows[turn].train_loss


def _overfit(view: SweepView) -> list[Hint]:
    over = [trial for trial in view.scored if overfits(trial)]
    if not over:
        return []
    winner = view.winner in over
    title = f"{plural(len(over), 'trial')} over-fit" + (", the winner among them" if winner else "")
    words = (
        "Training loss kept falling while validation loss rose by more than 5 %. "
        "Stronger `augment`, more `weight_decay`, or fewer stages to train would help."
    )
    return [Hint("problem" if winner else "advice", title, words)]


def _gap_to_test(view: SweepView) -> list[Hint]:
    metric, winner = view.objective.metric, view.winner
    if view.test is None or winner is None or winner.objective is None:
        return []
    tested, interval = view.test.metrics.get(metric), view.test.intervals.get(metric)
    if tested is None or interval is None or interval[0] <= winner.objective <= interval[1]:
        return []
    if not view.objective.better(winner.objective, tested):
        return []
    words = (
        f"`{metric}` is {score(tested)} on test and {score(winner.objective)} on validation, which "
        "lies outside the test's 95 % interval. The search may have fitted the validation split, "
        "or the splits differ."
    )
    return [Hint("problem", "The test score is clearly below validation", words)]


def _last_epoch(view: SweepView) -> list[Hint]:
    winner = view.winner
    if winner is None or winner.best_epoch is None or winner.n_epochs < 2:
        return []
    if winner.best_epoch < winner.n_epochs:
        return []
    stopped = " It was stopped there." if winner.status == "stopped" else ""
    words = f"Its best epoch is its last, {winner.n_epochs}.{stopped} More `epochs` may raise it."
    return [Hint("advice", "The winner was still improving", words)]


def _edges(view: SweepView) -> list[Hint]:
    """Searched values of the winner that lie at an end of what was searched."""
    winner, found = view.winner, []
    for key, chosen in winner.searched.items() if winner else ():
        drawn = view.range_of(key, strategy=winner.strategy if winner else None)
        ends = _ends(drawn)
        place = finite(chosen)
        if ends is None or place is None:
            continue
        low, high = ends
        fraction = _fraction(place, low, high, log="log" in drawn or drawn.get("kind") == "log")
        if fraction <= EDGE_FRACTION or fraction >= 1 - EDGE_FRACTION:
            side = "lower" if fraction < 0.5 else "upper"
            found.append(f"`{key}` {value(chosen)} is at the {side} end of {value([low, high])}")
    if not found:
        return []
    words = f"{'; '.join(found)}. The best value may lie outside: widen the range."
    return [Hint("advice", "The winner lies at the edge of the search", words)]


def _ends(drawn: Mapping[str, Any]) -> tuple[float, float] | None:
    pair = next((drawn[k] for k in ("log", "uniform", "int") if k in drawn), None)
    if pair is None and {"low", "high"} <= drawn.keys():
        pair = [drawn["low"], drawn["high"]]
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return None
    low, high = finite(pair[0]), finite(pair[1])
    return (low, high) if low is not None and high is not None and low < high else None


def _fraction(place: float, low: float, high: float, *, log: bool) -> float:
    if log and low > 0 and place > 0:
        return math.log(place / low) / math.log(high / low)
    return (place - low) / (high - low)


def _ties(view: SweepView, comparison: Comparison) -> list[Hint]:
    winner = view.winner
    if not comparison.ties or winner is None:
        return []
    cheapest = min(comparison.ties, key=lambda t: t.seconds or float("inf"))
    words = (
        f"Paired on the same validation examples, their 95 % interval of the difference includes "
        f"zero ({len(comparison.ties)} of the {comparison.n_rivals} next best)."
    )
    if 0 < cheapest.seconds < 0.7 * winner.seconds:
        share = percent(cheapest.seconds / winner.seconds)
        words += (
            f" The cheapest, {cheapest.name}, took {duration(cheapest.seconds)}, {share} of the "
            f"winner's time, for {signed(-_behind(view, cheapest))}."
        )
    title = f"{plural(len(comparison.ties), 'trial')} cannot be told from the winner"
    return [Hint("advice", title, words)]


def _behind(view: SweepView, trial: TrialView) -> float:
    first = view.winner.objective if view.winner else None
    return abs((first or 0.0) - (trial.objective or 0.0))


def _calibration(view: SweepView) -> list[Hint]:
    metrics = view.test.metrics if view.test else view.winner.validation if view.winner else {}
    error = metrics.get("ece")
    if error is None or error < HIGH_ECE:
        return []
    words = (
        f"Its expected calibration error is {score(error)}: do not read its probabilities as "
        "frequencies before they are calibrated (temperature scaling)."
    )
    return [Hint("advice", "The winner's confidence is off", words)]
