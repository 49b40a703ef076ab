"""What the report says of a pretraining: the paired gain, and when there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.report.adaptation import Adaptation, adaptations
from orchestrator.report.page import render
from orchestrator.report.reading import read_sweep
from orchestrator.report.sweep_view import SweepView, TrialView
from orchestrator.spec.experiment import HEAD
from orchestrator.spec.strategy import AdaptedFull, Full
from orchestrator.tuning.handing_over import warm_up_head

Build = Callable[..., Path]
ROW = {
    "digest": "d",
    "parent_weights": "before",
    "before": {"loss": 3.0, "perplexity": 20.0855},
    "after": {"loss": 2.5, "perplexity": 12.1825},
    "neighbours": {"before": 0.7, "after": 0.75},
}


@pytest.fixture(scope="module")
def plain(build_sweep: Build) -> SweepView:
    return read_sweep(build_sweep())


def adapted_view(plain: SweepView, *, better: int, worse: int, helps: bool) -> SweepView:
    """A view in which one of two scored trials is adapted and the other is its twin."""
    ours, theirs = (better, worse) if helps else (worse, better)
    scored = list(plain.scored)
    changed = {
        scored[ours].id: _as(scored[ours], adapted=True),
        scored[theirs].id: _as(scored[theirs], adapted=False),
    }
    trials = tuple(changed.get(trial.id, trial) for trial in plain.trials)
    return dataclasses.replace(plain, trials=trials, plan={"pretrainings": [ROW]})


def _as(trial: TrialView, *, adapted: bool) -> TrialView:
    assert trial.record is not None
    strategy = AdaptedFull(epochs=3) if adapted else Full(epochs=3)
    changes = {
        "strategy": strategy,
        "weights_digest": "after" if adapted else "before",
        "parents": {"pretraining": "d"} if adapted else {},
        "backbone": trial.record.experiment.backbone.model_copy(update={"name": "b"}),
    }
    experiment = trial.record.experiment.model_copy(update=changes)
    parents = {**experiment.parents, HEAD: warm_up_head(experiment).digest}
    experiment = experiment.model_copy(update={"parents": parents})
    return dataclasses.replace(
        trial,
        strategy=strategy.strategy,
        backbone="b",
        default=adapted,
        record=trial.record.model_copy(update={"experiment": experiment}),
    )


def only(view: SweepView) -> Adaptation:
    (found,) = adaptations(view)
    return found


def test_the_gain_is_paired_on_the_same_examples(plain: SweepView) -> None:
    last = len(plain.scored) - 1
    found = only(adapted_view(plain, better=0, worse=last, helps=True))
    assert found.twin is not None
    assert found.gain is not None
    assert found.gain.interval is not None
    assert found.trial.objective is not None
    assert found.twin.objective is not None
    assert found.gain.value == pytest.approx(found.trial.objective - found.twin.objective)
    assert found.gain.interval.low <= found.gain.value <= found.gain.interval.high
    assert found.sentence.startswith(f"+{found.gain.value:.3f} by pretraining b on the domain")
    assert found.sentence.endswith("a clear gain")


def test_it_is_said_when_it_does_not_help(plain: SweepView) -> None:
    last = len(plain.scored) - 1
    assert "does not help" in only(adapted_view(plain, better=0, worse=last, helps=False)).sentence
    close = only(adapted_view(plain, better=0, worse=1, helps=True))
    assert "no clear gain: the difference is within noise" in close.sentence


def test_a_twin_differs_in_nothing_but_the_pretraining(plain: SweepView) -> None:
    view = adapted_view(plain, better=0, worse=1, helps=True)
    trial, twin = view.scored[0], view.scored[1]
    assert twin.record is not None
    for changes in (
        {"strategy": Full(epochs=4)},
        {"parents": {"pretraining": "other"}},
        {"parents": {HEAD: "the best of a search"}},
        {"weights_digest": "others"},
        {"backbone": twin.record.experiment.backbone.model_copy(update={"name": "c"})},
    ):
        experiment = twin.record.experiment.model_copy(update=changes)
        record = twin.record.model_copy(update={"experiment": experiment})
        other = dataclasses.replace(twin, record=record)
        trials = tuple(other if t is twin else t for t in view.trials)
        found = only(dataclasses.replace(view, trials=trials))
        assert found.trial is trial
        assert found.twin is None
        assert "the gain is not known" in found.sentence


def test_the_page_shows_it(plain: SweepView) -> None:
    view = adapted_view(plain, better=0, worse=1, helps=True)
    page = render(view)
    assert "Held-out perplexity 20.09 before" in page
    assert "Nearest training examples of the same class" in page
    assert "twin without pretraining" in page


def test_without_domain_adaptive_trials_nothing_is_said(plain: SweepView) -> None:
    assert adaptations(plain) == ()
    assert "on the domain" not in render(plain)
