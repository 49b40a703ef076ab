"""A trunk's digest names all that its values depend on, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.bundle.frozen_trunk import frozen_cut, trunk_digest
from orchestrator.bundle.manifest import Cut
from orchestrator.models.backbone import Backbone
from orchestrator.models.building import build_backbone
from orchestrator.models.freezing import last_stages
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.strategy import (
    FeatureExtraction,
    Full,
    Partial,
    Scratch,
    StrategyParams,
    ZeroShot,
)
from tests.orchestrator.text_material import write_encoder


@pytest.fixture
def backbone(experiment: Experiment) -> Backbone:
    return build_backbone(BackboneSpec(name=experiment.backbone.name, weights="none"), size=64)


def of(experiment: Experiment, strategy: StrategyParams) -> Experiment:
    return experiment.model_copy(update={"strategy": strategy})


@pytest.mark.parametrize(
    ("strategy", "stages_left"),
    [
        (FeatureExtraction(), None),
        (ZeroShot(), None),
        (Partial(unfreeze=1), 1),
        (Partial(unfreeze=3), 3),
    ],
)
def test_the_cut_is_the_last_before_what_was_trained(
    experiment: Experiment, backbone: Backbone, strategy: StrategyParams, stages_left: int | None
) -> None:
    cut = frozen_cut(of(experiment, strategy), backbone)
    assert cut == ("features" if stages_left is None else backbone.n_stages - stages_left)


@pytest.mark.parametrize("strategy", [Full(), Scratch()])
def test_where_everything_is_trained_there_is_no_trunk(
    experiment: Experiment, backbone: Backbone, strategy: StrategyParams
) -> None:
    assert frozen_cut(of(experiment, strategy), backbone) is None


@torch.no_grad()
def move(backbone: Backbone, stage: int) -> None:
    next(backbone.parameters_of(stage)).add_(1e-3)


def test_what_was_trained_does_not_change_it_and_what_is_frozen_does(
    experiment: Experiment, backbone: Backbone
) -> None:
    partial = of(experiment, Partial(unfreeze=2))
    cut = backbone.n_stages - 2
    before = trunk_digest(partial, backbone, cut)
    for stage in last_stages(backbone, 2):
        move(backbone, stage)
    assert trunk_digest(partial, backbone, cut) == before
    move(backbone, cut)
    assert trunk_digest(partial, backbone, cut) != before


def test_frozen_statistics_count_as_weights(experiment: Experiment, backbone: Backbone) -> None:
    before = trunk_digest(experiment, backbone, "features")
    norm = next(m for m in backbone.stages[1].modules() if hasattr(m, "running_mean"))
    norm.running_mean += 1  # type: ignore[operator]
    assert trunk_digest(experiment, backbone, "features") != before


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"head": "mlp", "epochs": 3, "seed": 9}, True),
        ({"predict_views": 2}, False),
        ({"pooling": "mean"}, False),
    ],
)
def test_of_the_strategy_only_what_the_trunk_does_counts(
    experiment: Experiment, backbone: Backbone, change: dict[str, object], same: bool
) -> None:
    plain = trunk_digest(of(experiment, FeatureExtraction()), backbone, "features")
    other = of(experiment, FeatureExtraction.model_validate(change))
    assert (trunk_digest(other, backbone, "features") == plain) is same


@pytest.mark.parametrize(("pooling", "same"), [("mean", True), ("multi-scale", False)])
def test_pooling_counts_below_a_cut_only_where_the_trunk_pools(
    experiment: Experiment, backbone: Backbone, pooling: str, same: bool
) -> None:
    cut: Cut = backbone.n_stages - 1
    plain = trunk_digest(of(experiment, Partial(unfreeze=1)), backbone, cut)
    other = of(experiment, Partial.model_validate({"unfreeze": 1, "pooling": pooling}))
    assert (trunk_digest(other, backbone, cut) == plain) is same


def test_the_input_counts(experiment: Experiment, backbone: Backbone) -> None:
    other = experiment.model_copy(
        update={"input": experiment.input.model_copy(update={"crop_fraction": 1.0})}
    )
    digests = {trunk_digest(one, backbone, "features") for one in (experiment, other)}
    assert len(digests) == 2


def test_an_encoder_is_known_by_its_configuration_and_not_its_folder(
    experiment: Experiment, tmp_path: Path
) -> None:
    digests = []
    for name in ("one", "other"):
        spec = BackboneSpec(name=name, folder=str(write_encoder(tmp_path / name)))
        backbone = build_backbone(spec, size=16)
        of_texts = experiment.model_copy(update={"backbone": spec, "input": backbone.input})
        digests.append(trunk_digest(of_texts, backbone, "features"))
    assert digests[0] == digests[1]
