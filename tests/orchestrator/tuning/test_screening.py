"""Rung zero: the order of backbones, what is kept, and the audit of what is not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runtime.cluster import Cluster
from orchestrator.spec.parsing import parse_sweep
from orchestrator.spec.parts import BackboneSpec
from orchestrator.tuning.screening import Role, Screen, Screened, _places
from orchestrator.tuning.sweep import run_sweep
from tests.orchestrator.text_material import write_encoder, write_texts
from tests.orchestrator.tuning.test_sharing import HEAD, PARTIAL, factory_of, spec_of
from tests.orchestrator.tuning.test_sweep import Lines, RawSpec, records
from tests.orchestrator.tuning.test_sweep import spec_of as parsed

NAMES = ("mobilenetv3_small_050", "lcnet_035", "lcnet_050")
BACKBONES = [{"name": name, "weights": "none"} for name in NAMES]


def screen_of(*roles: Role) -> Screen:
    return Screen(
        [
            Screened(BackboneSpec.model_validate(backbone), 0.0, None, float(n), role)
            for n, (backbone, role) in enumerate(zip(BACKBONES, roles, strict=True), start=1)
        ]
    )


@pytest.mark.parametrize(
    ("scores", "better_is_higher", "places"),
    [
        ([0.7, 0.9, 0.8], True, [2.0, 1.5, 2.5]),
        ([0.7, 0.9, 0.8], False, [1.0, 2.5, 2.5]),
        ([None, None, None], True, [1.0, 2.0, 3.0]),
        ([None, 0.5, 0.9], True, [1.0, 2.0, 2.0]),
        ([0.5, 0.5, 0.5], True, [1.5, 2.0, 2.5]),
    ],
)
def test_the_place_is_the_mean_of_the_ranks_that_are_known(
    scores: list[float | None], better_is_higher: bool, places: list[float]
) -> None:
    assert _places([3.0, 2.0, 1.0], scores, better_is_higher=better_is_higher) == places


def test_fine_tuning_blocks_keep_the_best_and_other_blocks_everything() -> None:
    everywhere = {"backbone": BACKBONES[::-1]}
    spec = spec_of([HEAD | everywhere, PARTIAL | everywhere, PARTIAL | {"backbone": BACKBONES[2]}])
    heads, tuned, other = spec.search
    screen = screen_of("kept", "kept", "dropped")
    assert screen.narrowed(heads) == heads
    narrowed = screen.narrowed(tuned)
    assert narrowed is not None
    assert [value["name"] for value in narrowed.dimensions["backbone"].extremes] == [*NAMES[:2]]
    assert narrowed.vetted()["backbone"]["name"] == NAMES[0]
    assert screen.narrowed(other) is None
    assert Screen().narrowed(tuned) == tuned


def test_the_audit_is_one_vetted_trial_in_each_block_that_has_the_backbone() -> None:
    tuned = PARTIAL | {"backbone": BACKBONES, "unfreeze": [1, 2]}
    spec = spec_of([HEAD | {"backbone": BACKBONES}, tuned, PARTIAL | {"backbone": BACKBONES[0]}])
    (audit,) = screen_of("kept", "dropped", "audit").audits(spec.search, factory_of(spec).make)
    assert audit.block == spec.search[1].digest
    assert audit.experiment.backbone.name == NAMES[2]
    assert audit.searched["backbone"]["name"] == NAMES[2]
    assert audit.searched["unfreeze"] == spec.search[1].vetted()["unfreeze"]


def test_the_plan_says_again_what_was_decided() -> None:
    screen = screen_of("kept", "audit", "dropped")
    plan = json.loads(json.dumps({"screen": screen.to_json()}))
    again = Screen.of_plan(plan)
    assert again is not None
    assert again.rows == screen.rows
    assert Screen.of_plan({}) is None


@pytest.mark.ray
def test_a_sweep_fine_tunes_what_the_screen_keeps_and_one_audit(
    cluster: Cluster, raw_spec: RawSpec
) -> None:
    search: list[dict[str, Any]] = raw_spec()["search"]  # type: ignore[assignment]
    blocks = [{**block, "backbone": BACKBONES} for block in search]
    raw = raw_spec(search=blocks, screen={"keep": 1}, budget={"trials": 6})
    lines = Lines()
    outcome = run_sweep(parsed(raw), progress=lines)
    rows = json.loads((outcome.folder / "plan.json").read_bytes())["screen"]
    assert sorted(row["role"] for row in rows) == ["audit", "dropped", "kept"]
    assert rows[0]["role"] == "kept"
    assert all(row["bank"] is not None for row in rows)
    assert sum(line.startswith("screen: ") for line in lines.said) == 3
    tuned = [
        record.experiment.backbone.name
        for record in records(outcome).values()
        if record.experiment.strategy.strategy == "partial"
    ]
    role = {row["role"]: row["backbone"]["name"] for row in rows}
    assert sorted(tuned) == sorted([role["kept"], role["kept"], role["audit"]])
    # Continued with more to spend, it neither screens nor audits again.
    more, again = {**raw, "budget": {"trials": 8}}, Lines()
    run_sweep(parsed(more), progress=again)
    assert not any(line.startswith("screen: ") for line in again.said)
    audits = [
        record
        for record in records(outcome).values()
        if record.experiment.backbone.name == role["audit"]
        and record.experiment.strategy.strategy == "partial"
    ]
    assert len(audits) == 1


@pytest.mark.ray
def test_encoders_of_texts_are_screened_too(cluster: Cluster, tmp_path: Path) -> None:
    write_texts(tmp_path / "train", 12, seed=0)
    encoders = [
        str(write_encoder(tmp_path / name, n_layers=n_layers, seed=n_layers))
        for name, n_layers in (("small", 2), ("large", 3))
    ]
    raw = {
        "name": "texts",
        "task": "text-classification",
        "data": {"train": "train", "validation": 0.3},
        "defaults": {"max_length": 32, "epochs": 1, "batch_size": 8},
        "search": [
            {"strategy": "feature-extraction", "backbone": encoders},
            {"strategy": "partial", "backbone": encoders, "unfreeze": 1},
        ],
        "screen": {"keep": 1},
        "budget": {"trials": 4},
        "storage": "runs",
    }
    outcome = run_sweep(parse_sweep(raw, base=tmp_path))
    assert (outcome.ended, outcome.failed) == (4, 0), outcome
    rows = json.loads((outcome.folder / "plan.json").read_bytes())["screen"]
    assert [row["role"] for row in rows] == ["kept", "audit"]
    assert {row["backbone"]["folder"] for row in rows} == {*encoders}
    assert all(math.isfinite(row["log_me"]) and row["bank"] is not None for row in rows)
    tuned = [
        record.experiment.backbone.name
        for record in records(outcome).values()
        if record.experiment.strategy.strategy == "partial"
    ]
    assert sorted(tuned) == ["large", "small"]


def test_a_screen_that_drops_nothing_is_a_fault(raw_spec: RawSpec) -> None:
    with pytest.raises(Exception, match=r"screen\.keep: 1 drops nothing: this search fine-tunes 1"):
        parsed(raw_spec(screen={"keep": 1}))
