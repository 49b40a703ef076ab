"""The ladder as a sweep: zero-shot is the floor, a probe starts from texts, fine-tuning goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.promote import bundle_trial
from orchestrator.bundle.predictor import load_predictor
from orchestrator.bundle.zero_shot import is_open, load_zero_shot_predictor
from orchestrator.errors import SpecError
from orchestrator.report.comparison import compare
from orchestrator.report.reading import read_sweep
from orchestrator.runtime.cluster import Cluster
from orchestrator.runtime.folders import SweepFolder
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.clip_models import parse_clip
from orchestrator.spec.experiment import HEAD, Experiment
from orchestrator.spec.parsing import parse_sweep
from orchestrator.spec.parts import ObjectiveSpec, TaskSpec
from orchestrator.spec.prompts import LabelSet
from orchestrator.spec.record import Record
from orchestrator.spec.strategy import FeatureExtraction, Partial
from orchestrator.tuning.handing_over import head_key, warm_up_head
from orchestrator.tuning.sweep import run_sweep
from tests.orchestrator.clip_material import HELD_OUT, SEEN, label_of, write_shapes

PAIRS = (*SEEN[:4], *sorted(HELD_OUT))


@pytest.fixture(scope="module")
def raw(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small ladder on coloured shapes, half of which the CLIP has never seen."""
    root = tmp_path_factory.mktemp("ladder")
    write_shapes(root / "train", PAIRS, 8, seed=1)
    write_shapes(root / "test", PAIRS, 2, seed=2)
    clip = {"backbone": str(clip_folder)}
    text = {**clip, "head": "text", "augment": "none", "epochs": 2, "batch_size": 16}
    return {
        "name": "ladder",
        "task": "image-classification",
        "data": {
            "train": str(root / "train"),
            "validation": 0.4,
            "test": str(root / "test"),
        },
        "search": [
            {"strategy": "zero-shot", **clip},
            {"strategy": "feature-extraction", **text, "head_lr": 1e-2},
            {"strategy": "partial", **text, "unfreeze": 1, "backbone_lr": 1e-3, "wise_ft": True},
        ],
        "budget": {"trials": 3},
        "objective": {"metric": "log_loss"},
        "tuner": {"scheduler": "none"},
        "storage": str(root / "runs"),
    }


@pytest.fixture(scope="module")
def ladder(cluster: Cluster, raw: dict[str, Any]) -> SweepFolder:
    return SweepFolder(run_sweep(parse_sweep(raw, base=Path.cwd())).folder)


def record_of(folder: SweepFolder, strategy: str) -> Record:
    records = folder.records().values()
    return next(r for r in records if r.experiment.strategy.strategy == strategy)


@pytest.mark.ray
def test_every_rung_has_a_record_and_goes_on_from_the_one_before(ladder: SweepFolder) -> None:
    zero_shot, probe, tuned = (
        record_of(ladder, name) for name in ("zero-shot", "feature-extraction", "partial")
    )
    assert {r.status for r in (zero_shot, probe, tuned)} == {"finished"}
    assert (len(zero_shot.epochs), zero_shot.phases[0].trainable) == (1, 0)
    assert tuned.experiment.parents == {HEAD: probe.experiment.digest}
    assert tuned.interpolation is not None
    tried = dict(tuned.interpolation.objectives)
    assert tried[0.0] == pytest.approx(zero_shot.objective, rel=1e-3)
    assert tuned.objective == min(tried.values())


@pytest.mark.ray
def test_the_leaderboard_and_the_report_show_the_floor(ladder: SweepFolder) -> None:
    zero_shot = record_of(ladder, "zero-shot")
    board = json.loads((ladder.root / "leaderboard.json").read_text())
    assert board["floor"] == zero_shot.trial
    view = read_sweep(ladder.root)
    assert view.floor is not None
    assert view.floor.id == zero_shot.trial
    comparison = compare(view)
    assert comparison.over_floor is not None
    assert view.winner is not None
    assert comparison.over_floor.value == pytest.approx(
        zero_shot.objective - view.winner.objective  # type: ignore[operator]
    )
    assert "Zero-shot" in {standing.name for standing in comparison.standings}


@pytest.mark.ray
def test_a_promoted_trial_answers_with_the_weights_between(
    ladder: SweepFolder, raw: dict[str, Any]
) -> None:
    bundle = bundle_trial(ladder, record_of(ladder, "partial"))
    assert not is_open(bundle)
    files = sorted(Path(raw["data"]["test"]).rglob("*.png"))
    answers = list(load_predictor(bundle).predict(files))
    right = [a["label"] == file.parent.name for a, file in zip(answers, files, strict=True)]
    assert np.mean(right) > 0.8
    assert "moved back towards zero-shot" in bundle.read("MODEL_CARD.md").decode()


@pytest.mark.ray
def test_a_promoted_zero_shot_trial_answers_for_other_labels_too(ladder: SweepFolder) -> None:
    bundle = bundle_trial(ladder, record_of(ladder, "zero-shot"))
    assert bundle.manifest.scores.validation.metrics["accuracy"] > 0.5
    labelled = load_zero_shot_predictor(bundle).labelled(LabelSet(labels=("red bar", "blue ring")))
    assert labelled.manifest.task.labels == ("red bar", "blue ring")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("descriptions", "said"),
    [
        ({label_of(PAIRS[0]): "red " * 20}, "nothing is cut off"),
        ({"red_cicrle": "a red circle"}, "Did you mean 'red_circle'"),
    ],
)
def test_prompts_that_cannot_be_read_end_the_sweep_before_it_computes(
    cluster: Cluster,
    raw: dict[str, Any],
    tmp_path: Path,
    descriptions: dict[str, str],
    said: str,
) -> None:
    block = {**raw["search"][0], "descriptions": descriptions}
    spec = parse_sweep({**raw, "search": [block], "storage": str(tmp_path)}, base=Path.cwd())
    with pytest.raises(SpecError, match=said):
        run_sweep(spec)
    assert not list((tmp_path / "features").rglob("*.bin"))


@pytest.fixture
def experiment(clip_folder: Path) -> Callable[[Any], Experiment]:
    spec = parse_clip(str(clip_folder), base=Path("/"))

    def make(strategy: Any) -> Experiment:
        return Experiment(
            task=TaskSpec(kind="image-classification", labels=("a", "b")),
            data_digest="d",
            backbone=spec,
            weights_digest="w",
            input=facts_of(spec).input,
            strategy=strategy,
            objective=ObjectiveSpec(),
        )

    return make


def test_a_head_is_handed_on_to_trials_of_the_same_texts_alone(
    experiment: Callable[[Any], Experiment],
) -> None:
    child = experiment(Partial(head="text", templates="plain"))
    same = experiment(FeatureExtraction(head="text", templates="plain"))
    assert head_key(child) == head_key(same) == head_key(warm_up_head(child))
    for other in (
        FeatureExtraction(head="text"),
        FeatureExtraction(),
        FeatureExtraction(head="text", templates="plain", descriptions={"a": ("x",)}),
    ):
        assert head_key(experiment(other)) != head_key(child)
