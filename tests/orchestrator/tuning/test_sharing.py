"""What trials share is found from the search alone, and stored where there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import CapacityError
from orchestrator.models.building import build_backbone
from orchestrator.runtime.feature_filling import FeatureNeed
from orchestrator.spec.parsing import parse_sweep
from orchestrator.spec.parts import BackboneSpec, ObjectiveSpec, TaskSpec
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tuning.experiments import ExperimentFactory, backbones_of
from orchestrator.tuning.sharing import Shared, corner_experiments, shared_work, stored_cut_of

BACKBONE = {"name": "resnet18", "weights": "none"}
IMAGES = 1000
HEAD = {
    "strategy": "feature-extraction",
    "backbone": BACKBONE,
    "head_lr": {"log": [1e-3, 3e-3]},
    "epochs": 10,
}
PARTIAL = {
    "strategy": "partial",
    "backbone": BACKBONE,
    "unfreeze": [1, 2],
    "backbone_lr": {"log": [1e-5, 1e-4]},
    "augment": "none",
    "warm_up_epochs": 5,
    "epochs": 15,
}


def spec_of(search: list[dict[str, Any]], **budget: float) -> SweepSpec:
    raw = {
        "name": "shared",
        "task": "image-classification",
        "data": {"train": "data"},
        "search": search,
        "budget": {"trials": 8, **budget},
    }
    return parse_sweep(raw, base=Path("/nowhere"))


def factory_of(spec: SweepSpec) -> ExperimentFactory:
    return ExperimentFactory(
        task=TaskSpec(kind="image-classification", labels=("a", "b")),
        data_digest="d",
        objective=ObjectiveSpec(),
        weights_digests=dict.fromkeys(backbones_of(spec), "w"),
    )


def shared_of(
    spec: SweepSpec, budget_bytes: float = 1e12, seconds: dict[str, float] | None = None
) -> list[Shared]:
    return shared_work(
        spec,
        factory_of(spec),
        images=lambda _: IMAGES,
        forward_s=lambda backbone, size: (seconds or {}).get(backbone),
        room=lambda needs: budget_bytes,
    )


def found(search: list[dict[str, Any]], budget_bytes: float = 1e12) -> dict[Any, Shared]:
    spec = spec_of(search)
    work = shared_of(spec, budget_bytes)
    by_name = {(each.need.output, each.need.source.view): each for each in work}
    assert len(by_name) == len(work)
    return by_name


def test_heads_share_one_pass_over_the_images() -> None:
    (only,) = found([HEAD]).values()
    assert only.need.output == "last"
    assert only.trials == 8
    assert only.passes == 80
    assert only.saved_passes == 79
    assert only.bytes == IMAGES * 512 * 4


def test_partial_fine_tuning_shares_the_stages_below_its_own() -> None:
    work = found([PARTIAL])
    assert set(work) == {("last", 0), (2, 0), (3, 0)}
    assert work["last", 0].trials == 8
    below_two, below_one = work[2, 0], work[3, 0]
    assert (below_two.trials, below_one.trials) == (4, 4)
    assert below_two.passes == 4 * 15
    # stage 2 of resnet18 at 224 px: 128 channels of 28 x 28, in half precision
    assert below_two.bytes == IMAGES * 128 * 28 * 28 * 2
    assert 0 < below_two.share < below_one.share < 1


def test_a_block_more_changes_no_need() -> None:
    assert {w.need for w in found([HEAD]).values()} <= {
        w.need for w in found([HEAD, PARTIAL]).values()
    }


@pytest.mark.parametrize("changes", [{"augment": "light"}, {"mixup": 0.2}, {"cutmix": 0.2}])
def test_pictures_that_change_every_epoch_share_features_alone(changes: dict[str, Any]) -> None:
    assert set(found([PARTIAL | changes])) == {("last", 0)}


def test_every_view_is_a_pass_of_its_own() -> None:
    work = found([PARTIAL | {"views": 2, "predict_views": 4, "unfreeze": 1}])
    assert set(work) == {(output, view) for output in ("last", 3) for view in range(4)}


def test_fixed_draws_of_an_augmentation_are_shared_beside_the_images_to_judge() -> None:
    spec = spec_of([PARTIAL | {"augment": "light", "views": 2, "unfreeze": 1}])
    work = shared_of(spec)
    assert {(w.need.output, w.need.source.view, w.need.source.augment) for w in work} == {
        (output, view, augment)
        for output in ("last", 3)
        for view, augment in ((0, "light"), (1, "light"), (0, "none"))
    }


def test_full_fine_tuning_and_scratch_have_no_frozen_stage() -> None:
    full = {"strategy": "full", "backbone": BACKBONE, "augment": "none", "warm_up_epochs": 1}
    assert set(found([full])) == {("last", 0)}
    assert found([{"strategy": "scratch", "backbone": BACKBONE}]) == {}


def test_what_saves_most_a_byte_is_stored_first() -> None:
    everything = found([HEAD, PARTIAL])
    features = everything["last", 0].bytes
    room = features + everything[3, 0].bytes
    stored = {key for key, work in found([HEAD, PARTIAL], room).items() if work.stored}
    assert stored == {("last", 0), (3, 0)}  # deeper, smaller, and it saves more
    only = {key for key, work in found([HEAD, PARTIAL], features).items() if work.stored}
    assert only == {("last", 0)}
    with pytest.raises(CapacityError, match=r"0\.00205 GB of the 0\.001 GB"):
        found([HEAD, PARTIAL], 1e6)


def test_of_two_backbones_the_slower_is_stored_first_once_their_times_are_known() -> None:
    fast = {**PARTIAL, "unfreeze": 1}
    slow = {**fast, "backbone": {"name": "resnet34", "weights": "none"}}
    spec = spec_of([fast, slow])
    cut_bytes = [work.bytes for work in shared_of(spec) if work.need.output == 3]
    features = sum(work.bytes for work in shared_of(spec) if work.need.output == "last")
    assert len(set(cut_bytes)) == 1
    room = features + cut_bytes[0]
    for slower, faster in (("resnet34", "resnet18"), ("resnet18", "resnet34")):
        work = shared_of(spec, room, {slower: 0.2, faster: 0.1})
        stored = [w.need.source.backbone.name for w in work if w.stored and w.need.output == 3]
        assert stored == [slower]


def test_every_depth_of_a_range_has_its_cut() -> None:
    assert {key[0] for key in found([PARTIAL | {"unfreeze": {"int": [1, 3]}}])} == {"last", 1, 2, 3}


def test_all_views_are_stored_or_none() -> None:
    block = PARTIAL | {"views": 4, "unfreeze": 1}
    work = found([block])
    everything = sum(each.bytes for each in work.values())
    short = found([block], everything - 1)
    assert [each.stored for key, each in short.items() if key[0] == 3] == [False] * 4


def test_a_trial_starts_from_the_cut_that_is_stored() -> None:
    spec = spec_of([PARTIAL])
    experiments = corner_experiments(spec.search[0], factory_of(spec))
    needs: list[FeatureNeed] = [work.need for work in found([PARTIAL]).values()]
    assert [stored_cut_of(e, needs) for e in experiments] == [3, 2]
    less = [need for need in needs if need.output != 2]
    assert [stored_cut_of(e, less) for e in experiments] == [3, None]
    backbone = build_backbone(BackboneSpec(**BACKBONE))
    assert backbone.deepest_cut(2) == 2
