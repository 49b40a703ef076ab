import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import CapacityError, SweepLockedError
from orchestrator.features.store import _VERIFIED
from orchestrator.runtime.cluster import Cluster
from orchestrator.runtime.folders import SweepFolder
from orchestrator.spec.parsing import parse_sweep
from orchestrator.spec.record import Record
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tuning.preparing import prepare_sweep
from orchestrator.tuning.sweep import SweepOutcome, run_sweep

pytestmark = pytest.mark.ray

RawSpec = Callable[..., dict[str, object]]


class Lines:
    """Keeps what a sweep says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def count(self, label: str, done: int, total: int) -> None:
        self.said.append(f"{label} {done}/{total}")


def spec_of(raw: dict[str, object]) -> SweepSpec:
    return parse_sweep(raw, base=Path.cwd())


def records(outcome: SweepOutcome) -> dict[str, Record]:
    return SweepFolder(outcome.folder).records()


def files_of(outcome: SweepOutcome) -> dict[str, tuple[int, bytes]]:
    """When and what every record of a sweep was written."""
    return {
        path.parent.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in outcome.folder.glob("trials/*/record.json")
    }


@pytest.fixture(scope="module")
def ended(
    cluster: Cluster, make_spec: RawSpec, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, object], SweepOutcome]:
    """A sweep that has ended; nobody may change its folder."""
    raw = make_spec(tmp_path_factory.mktemp("ended") / "runs")
    return raw, run_sweep(spec_of(raw))


@pytest.fixture
def small(
    ended: tuple[dict[str, object], SweepOutcome], tmp_path: Path
) -> tuple[dict[str, object], SweepOutcome]:
    """A copy of it, moved elsewhere."""
    raw, outcome = ended
    storage = tmp_path / "runs"
    shutil.copytree(str(raw["storage"]), storage)
    folder = storage / outcome.folder.name
    return {**raw, "storage": str(storage)}, replace(outcome, folder=folder)


def test_a_sweep_ends_with_records_a_leaderboard_a_winner_and_its_test(
    small: tuple[dict[str, object], SweepOutcome],
) -> None:
    _, outcome = small
    found = records(outcome)
    assert outcome.status == "finished"
    assert (outcome.ended, outcome.failed, len(found)) == (4, 0, 4)
    strategies = sorted(r.experiment.strategy.strategy for r in found.values())
    assert strategies == ["feature-extraction"] * 2 + ["partial"] * 2
    board = json.loads((outcome.folder / "leaderboard.json").read_text())
    objectives = [row["objective"] for row in board["rows"]]
    assert objectives == sorted(objectives, reverse=True)
    assert outcome.best is not None
    assert board["rows"][0]["trial"] == outcome.best.trial
    assert sum(row["default"] for row in board["rows"]) == 2
    assert outcome.test is not None
    assert outcome.test["trial"] == outcome.best.trial
    assert outcome.test["n"] == 24
    for record in found.values():
        trial = outcome.folder / "trials" / record.trial
        kept = [path.name for path in (trial / "checkpoints").iterdir()]
        assert kept == [f"epoch-{record.best_epoch:04d}"]
        assert record.peak_memory_bytes > 0
        assert record.placement is not None


def test_the_same_command_again_changes_nothing_and_starts_no_trial(
    small: tuple[dict[str, object], SweepOutcome],
) -> None:
    raw, first = small
    before = files_of(first)
    again = run_sweep(spec_of(raw))
    assert again.folder == first.folder
    assert again.status == "finished"
    assert files_of(again) == before


def test_a_larger_budget_extends_and_reruns_nothing(
    small: tuple[dict[str, object], SweepOutcome],
) -> None:
    raw, first = small
    before = files_of(first)
    more = run_sweep(spec_of({**raw, "budget": {"trials": 6}}))
    after = files_of(more)
    assert more.folder == first.folder
    assert len(after) == 6
    assert {name: after[name] for name in before} == before


def test_fresh_starts_another_sweep_and_the_next_command_continues_that(
    cluster: Cluster, raw_spec: RawSpec
) -> None:
    spec = spec_of(raw_spec(budget={"trials": 1}))
    first = run_sweep(spec)
    fresh = run_sweep(spec, fresh=True)
    assert fresh.folder.name == f"{first.folder.name}-2"
    assert run_sweep(spec).folder == fresh.folder


def test_what_is_frozen_is_computed_once_and_hit_by_the_next_sweep(
    cluster: Cluster, raw_spec: RawSpec
) -> None:
    """A sweep that asks for a deeper cut as well goes over the images once more, and stores it."""
    raw = raw_spec(budget={"trials": 2})
    search: list[Any] = raw["search"]  # type: ignore[assignment]
    head, partial = search[0], {**search[1], "epochs": 6}
    told = []
    for name, blocks in (
        ("first", [head, {**partial, "unfreeze": 1}]),
        ("again", [head, {**partial, "unfreeze": 1}]),
        ("more", [head, partial]),
    ):
        lines = Lines()
        run_sweep(spec_of({**raw, "name": name, "search": blocks}), progress=lines)
        told.append([line for line in lines.said if line.startswith("forward passes of")])
    assert told[0][-1] == "forward passes of mobilenetv3_small_050 at 32 px 72/72"
    assert told[1] == []
    assert told[2][-1] == told[0][-1]


def test_a_damaged_store_file_is_computed_again_and_others_leftovers_make_room(
    cluster: Cluster, raw_spec: RawSpec
) -> None:
    raw = raw_spec(budget={"trials": 2})
    first = run_sweep(spec_of(raw))
    store = first.folder.parent / "features"
    (part,) = (path for path in store.rglob("part-*.arrow"))
    sound = part.read_bytes()
    part.write_bytes(sound[: len(sound) // 2])
    _VERIFIED.clear()
    lines = Lines()
    again = run_sweep(spec_of({**raw, "name": "again"}), progress=lines)
    assert again.status == "finished"
    assert any(line.startswith("forward passes of") for line in lines.said)
    assert part.read_bytes() == sound
    assert {r.status for r in records(again).values()} == {"finished"}
    # A store with room for one set of features drops the one that no sweep reads any more.
    size = sum(path.stat().st_size for path in part.parent.iterdir())
    budget = {"trials": 2, "store_gb": 1.5 * size / 1e9}
    defaults: dict[str, Any] = raw["defaults"]  # type: ignore[assignment]
    other = {**raw, "name": "other", "defaults": {**defaults, "seed": 1}, "budget": budget}
    lines = Lines()
    run_sweep(spec_of(other), progress=lines)
    assert any("1 entries longest unused were evicted" in line for line in lines.said)
    assert not part.exists()
    assert len(list(store.rglob("part-*.arrow"))) == 1


def test_fine_tuning_starts_from_what_the_plan_stores(cluster: Cluster, raw_spec: RawSpec) -> None:
    """With no room for activations the same trials end alike, from the images."""
    raw = raw_spec(defaults={**raw_spec()["defaults"], "views": 2, "stored_precision": "fp32"})  # type: ignore[dict-item]
    raw["search"][1]["epochs"] = 6  # type: ignore[index]
    stored = run_sweep(spec_of(raw))
    plan = json.loads((stored.folder / "plan.json").read_bytes())
    activations = [row for row in plan["shared"] if "activations" in row["what"]]
    assert len(activations) == 4  # two cuts, two views
    assert all(row["stored"] and row["forward_passes_saved"] >= 0 for row in activations)
    features = sum(row["bytes"] for row in plan["shared"] if "features" in row["what"])
    small = {**raw, "name": "small", "budget": {"trials": 4, "store_gb": features / 1e9}}
    recomputed = run_sweep(spec_of(small))
    plan = json.loads((recomputed.folder / "plan.json").read_bytes())
    assert not any(row["stored"] for row in plan["shared"] if "activations" in row["what"])
    ours, theirs = records(stored), records(recomputed)
    alike = [
        name for name in ours.keys() & theirs.keys() if ours[name].phases[-1].name == "partial"
    ]
    assert alike
    for name in alike:
        assert ours[name].validation == pytest.approx(theirs[name].validation, rel=0.02, abs=0.02)


def test_fine_tuning_starts_from_the_best_head_that_the_plan_names(
    small: tuple[dict[str, object], SweepOutcome],
) -> None:
    _, outcome = small
    found = records(outcome)
    (named,) = json.loads((outcome.folder / "plan.json").read_bytes())["heads"]
    heads = [r for r in found.values() if r.experiment.strategy.strategy == "feature-extraction"]
    best = max(heads, key=lambda record: (record.objective or 0.0, record.trial == named["trial"]))
    assert (named["trial"], named["digest"]) == (best.trial, best.experiment.digest)
    tuned = [r for r in found.values() if r.experiment.strategy.strategy == "partial"]
    assert tuned
    for record in tuned:
        assert record.experiment.parents == {"head": best.experiment.digest}
        assert [phase.name for phase in record.phases] == ["partial"]


def test_a_head_that_nobody_searches_is_trained_for_fine_tuning_and_is_no_trial(
    cluster: Cluster, raw_spec: RawSpec
) -> None:
    search: list[Any] = raw_spec()["search"]  # type: ignore[assignment]
    raw = raw_spec(search=[search[1]], budget={"trials": 2})
    outcome = run_sweep(spec_of(raw))
    (named,) = json.loads((outcome.folder / "plan.json").read_bytes())["heads"]
    found = records(outcome)
    assert len(found) == 2
    assert named["trial"] not in found
    assert (outcome.folder / "heads" / named["trial"] / "record.json").is_file()
    assert {r.experiment.parents["head"] for r in found.values()} == {named["digest"]}
    # Continued, the sweep starts new trials from the same head.
    more = run_sweep(spec_of({**raw, "budget": {"trials": 3}}))
    assert {r.experiment.parents["head"] for r in records(more).values()} == {named["digest"]}


def test_heads_are_trained_in_one_bank_and_each_has_its_record(
    cluster: Cluster, raw_spec: RawSpec
) -> None:
    search: list[Any] = raw_spec()["search"]  # type: ignore[assignment]
    raw = raw_spec(search=[search[0]], budget={"trials": 6})
    lines = Lines()
    outcome = run_sweep(spec_of(raw), progress=lines)
    found = records(outcome)
    assert (outcome.status, len(found)) == ("finished", 6)
    assert [line for line in lines.said if line.startswith("start ")] == [
        "start bank 1: 6 heads on mobilenetv3_small_050 last features"
    ]
    assert len({record.experiment.strategy.head_lr for record in found.values()}) == 6  # type: ignore[union-attr]
    for name, record in found.items():
        assert [row.epoch for row in record.epochs] == [1, 2]
        assert (outcome.folder / "trials" / name / str(record.checkpoint)).is_dir()
        assert "validation.arrow" in record.files


def test_a_diverging_trial_ends_itself_and_never_the_sweep(
    cluster: Cluster, raw_spec: RawSpec
) -> None:
    search: list[Any] = raw_spec()["search"]  # type: ignore[assignment]
    wild = {**search[1], "unfreeze": 2, "backbone_lr": 10.0, "head_lr": 10.0, "epochs": 4,
            "optimizer": "sgd", "weight_decay": 10.0}  # fmt: skip
    raw = raw_spec(search=[search[0], wild], budget={"trials": 3}, tuner={"scheduler": "none"})
    outcome = run_sweep(spec_of(raw))
    by_status = {r.experiment.strategy.strategy: r.status for r in records(outcome).values()}
    assert by_status == {"feature-extraction": "finished", "partial": "diverged"}
    assert outcome.status == "finished"
    assert outcome.best is not None
    assert outcome.best.experiment.strategy.strategy == "feature-extraction"


def test_the_budget_of_minutes_stops_what_runs_and_says_so(
    cluster: Cluster, raw_spec: RawSpec
) -> None:
    search: list[Any] = raw_spec()["search"]  # type: ignore[assignment]
    endless = [{**search[0], "epochs": 5000}]
    outcome = run_sweep(spec_of(raw_spec(search=endless, budget={"trials": 50, "minutes": 0.15})))
    found = records(outcome).values()
    assert outcome.status == "budget"
    assert {(r.status, r.reason) for r in found} == {("stopped", "budget")}
    assert all(0 < len(r.epochs) < 5000 for r in found)


def test_two_processes_cannot_run_one_sweep(cluster: Cluster, raw_spec: RawSpec) -> None:
    spec = spec_of(raw_spec())
    sweep = prepare_sweep(spec)
    with sweep.folder.locked(), pytest.raises(SweepLockedError, match="being run by process"):
        run_sweep(spec)


def test_an_impossible_request_is_refused_with_the_arithmetic(
    cluster: Cluster, raw_spec: RawSpec
) -> None:
    spec = spec_of(raw_spec(workers={"per_trial": 3, "cpus": 2}))
    with pytest.raises(CapacityError, match=r"3 workers × 2 CPUs = 6 CPUs .* has 4 CPUs"):
        run_sweep(spec)


def test_tune_leaves_nothing_in_the_sweeps_folder(
    small: tuple[dict[str, object], SweepOutcome],
) -> None:
    _, outcome = small
    suffixes = {path.suffix for path in outcome.folder.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".arrow", ".safetensors", ""}  # "" is the lock


def test_a_search_without_anything_new_ends_before_its_budget(
    cluster: Cluster, raw_spec: RawSpec
) -> None:
    search: list[Any] = raw_spec()["search"]  # type: ignore[assignment]
    heads = {**search[0], "head_lr": 1e-3, "head": ["linear", "mlp"]}
    raw = raw_spec(search=[heads], budget={"trials": 50})
    outcome = run_sweep(spec_of(raw))
    assert (outcome.status, outcome.ended) == ("finished", 2)
    before = files_of(outcome)
    assert files_of(run_sweep(spec_of(raw))) == before


def test_several_labels_an_image_go_the_same_way(
    cluster: Cluster, raw_spec: RawSpec, colours: Path, tmp_path: Path
) -> None:
    rows = [
        {"image": str(path), "labels": [label, "warm"] if label == "red" else [label]}
        for label in ("blue", "red")
        for path in sorted((colours / "train" / label).iterdir())
    ]
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    outcome = run_sweep(
        spec_of(
            raw_spec(
                task="image-multilabel-classification",
                data={"train": str(manifest)},
                budget={"trials": 2},
                objective={"metric": "roc_auc"},
            )
        )
    )
    assert outcome.failed == 0
    assert outcome.best is not None
    assert outcome.best.experiment.task.labels == ("blue", "red", "warm")
    assert outcome.best.validation["roc_auc"] > 0.8
