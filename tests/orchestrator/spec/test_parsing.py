"""A whole spec: every fault at once, paths made absolute, junk never another error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec.parsing import ALL_KEYS, SECTIONS, load_spec, notes_on, parse_sweep
from orchestrator.spec.sweep import SweepSpec

Make = Callable[..., dict[str, Any]]
Parse = Callable[[Any], SweepSpec]
Faults = Callable[[Any], dict[str, str]]

FIVE_MISTAKES = """\
name: Solar Cells
task: image-clasification
data: {train: train, validation: 1.5}
search:
  - strategy: partial
    backbone: tf_efficientnet_lite0
    unfreeze: 9
  - strategy: full
    backbone: tf_eficientnet_lite0
"""


def test_five_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(FIVE_MISTAKES)

    with pytest.raises(SpecError) as caught:
        load_spec(path)

    assert [fault.key for fault in caught.value.faults] == [
        "data.validation",
        "search[0].unfreeze",
        "search[1].backbone",
        "name",
        "task",
    ]
    lines = str(caught.value).splitlines()
    assert lines[0] == f"5 faults in {path}"
    assert "1.5 must be less than 1" in lines[1]
    assert "9 is more than tf_efficientnet_lite0 has (7 stages). Use 1–6" in lines[2]
    assert "Did you mean 'tf_efficientnet_lite0'?" in lines[3]
    assert "Did you mean 'image-classification'?" in lines[5]


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_an_unknown_key_of_a_section_is_named(raw: Make, faults: Faults, section: str) -> None:
    fields = list(SECTIONS[section].model_fields)
    known = {"data": {"train": "train"}, "screen": {"keep": 1}}.get(section, {})
    for wrong in (fields[0] + "x", "max-trials", "Train", "str", "1"):
        told = faults(raw(**{section: {**known, wrong: 1}}))

        assert list(told) == [f"{section}.{wrong}"]
        assert "unknown key. Allowed: " + fields[0] in told[f"{section}.{wrong}"]
    assert (
        f"Did you mean {fields[0]!r}?"
        in faults(raw(**{section: {**known, fields[0] + "x": 1}}))[f"{section}.{fields[0]}x"]
    )


def test_two_unknown_keys_are_two_faults(raw: Make, faults: Faults) -> None:
    told = faults(raw(budget={"max-trials": 1, "Max": 2}, serach=[], defaults={"epochz": 3}))

    assert set(told) == {"serach", "defaults.epochz", "budget.max-trials", "budget.Max"}
    assert "Did you mean 'search'?" in told["serach"]
    assert "no strategy has this parameter. Did you mean 'epochs'?" in told["defaults.epochz"]


@pytest.mark.parametrize(
    ("section", "value", "key", "told"),
    [
        ("data", {}, "data.train", "missing"),
        ("data", {"train": 5}, "data.train", "5 must be a valid string"),
        ("data", {"train": "~no-such-user/a"}, "data.train", "is no path"),
        ("data", {"train": "a", "validation": 0}, "data.validation", "greater than 0"),
        ("data", {"train": "a", "validation": True}, "data.validation", "valid number"),
        ("data", {"train": "a", "bad_fraction": -1}, "data.bad_fraction", "-1 must be greater"),
        ("data", "train", "data", "no section. Expected keys: train"),
        ("budget", {"trials": 0}, "budget.trials", "0 must be greater than or equal to 1"),
        ("budget", {"trials": True}, "budget.trials", "True must be a valid integer"),
        ("budget", {"trials": "16"}, "budget.trials", "'16' must be a valid integer"),
        ("budget", {"trials": 16.0}, "budget.trials", "valid integer"),
        ("budget", {"minutes": 0}, "budget.minutes", "greater than 0"),
        ("budget", {"trials": None}, "budget", "Give at least one"),
        ("budget", 16, "budget", "no section"),
        ("objective", {"metric": "f1"}, "objective.metric", "Did you mean 'f1_macro'?"),
        ("objective", {"metric": ["f1"]}, "objective.metric", "is not one of accuracy"),
        ("objective", {"metric": "accuracy", "mode": "min"}, "objective", "Use max"),
        ("objective", {"metric": "log_loss", "mode": "max"}, "objective", "Use min"),
        ("objective", {"mode": "min"}, "objective", "would seek the worst f1_macro"),
        ("tuner", {"searcher": "optunna"}, "tuner.searcher", "Did you mean 'optuna'?"),
        ("tuner", {"scheduler": "hyperband"}, "tuner.scheduler", "asha, median, none"),
        ("workers", {"per_trial": 0}, "workers.per_trial", "greater than or equal to 1"),
        ("workers", {"per_trial": "x"}, "workers.per_trial", "valid integer or an object"),
        ("workers", {"per_trial": {"elastic": [4, 1]}}, "workers.per_trial", "[fewest, most]"),
        ("workers", {"per_trial": {"elastic": [0, 1]}}, "workers.per_trial.elastic[0]", "0 must"),
        ("workers", {"gpus": -1}, "workers.gpus", "greater than or equal to 0"),
        ("tracking", {"mlflow": 5}, "tracking.mlflow", "valid string"),
        ("storage", "s3://key:word@bucket/runs", "storage", "holds a password"),
        ("storage", "memory://runs", "storage", "is not shared by the nodes"),
        ("storage", ["runs"], "storage", "['runs'] is no folder"),
        ("storage", 5, "storage", "5 is no folder"),
        ("storage", "", "storage", "'' is no folder"),
        ("storage", "a\0b", "storage", "is no path"),
        ("name", None, "name", "missing. Give the sweep a short name"),
        ("name", 5, "name", "5 must be a valid string"),
        ("task", ["a"], "task", "is not one of image-classification"),
        ("search", None, "search", "missing. List one block a strategy"),
        ("search", [], "search", "[] is no list of blocks"),
        ("search", {"strategy": "full"}, "search", "is no list of blocks"),
        ("search", ["full"], "search[0]", "'full' is no block"),
        ("search", [{"backbone": "resnet18"}], "search[0].strategy", "missing. One of"),
        ("search", [{"strategy": "partail"}], "search[0].strategy", "Did you mean 'partial'?"),
        ("search", [{"strategy": ["full"]}], "search[0].strategy", "is not one of"),
        ("defaults", [], "defaults", "[] is no section"),
        ("defaults", "epochs", "defaults", "'epochs' is no section"),
        ("defaults", {"seed": -1}, "defaults.seed", "-1 must be greater than or equal to 0"),
        ("defaults", {"seed": True}, "defaults.seed", "True must be a valid integer"),
        ("defaults", {"epochs": 0}, "defaults.epochs", "0 must be greater"),
        ("defaults", {"head_lr": {"log": [1, 0]}}, "defaults.head_lr", "the lower one first"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_fault_at_its_key(
    raw: Make, faults: Faults, section: str, value: Any, key: str, told: str
) -> None:
    found = faults(raw(**{section: value}))

    assert list(found) == [key]
    assert told in found[key]


def test_a_default_that_one_strategy_refuses_is_told_once(raw: Make, faults: Faults) -> None:
    search = [{"strategy": name, "backbone": "resnet18"} for name in ("partial", "full", "scratch")]

    told = faults(raw(search=search, defaults={"epochs": 0, "unfreeze": True}))

    assert list(told) == ["defaults.epochs", "defaults.unfreeze"]


def test_a_seed_of_the_search_is_checked_when_every_block_has_its_own(
    raw: Make, faults: Faults, parse: Parse
) -> None:
    search = [{"strategy": "full", "backbone": "resnet18", "seed": 1}]

    assert list(faults(raw(search=search, defaults={"seed": -1}))) == ["defaults.seed"]
    assert parse(raw(search=search, defaults={"seed": 7})).seed == 7
    assert parse(raw(defaults={"seed": [1, 2]})).seed == 0


def test_nothing_at_all_asks_for_what_is_needed(faults: Faults) -> None:
    assert list(faults({})) == ["name", "task", "data", "search"]
    for nothing in (None, [], "name: x", 3):
        assert "Expected keys: name, task" in faults(nothing)[""]


def test_a_long_value_is_not_repeated_whole(raw: Make, faults: Faults) -> None:
    told = faults(raw(task="x" * 100_000, storage=["y" * 100_000], search="z" * 100_000))

    assert max(len(message) for message in told.values()) < 500


def test_a_grid_takes_no_continuous_range(block: Make, faults: Faults, parse: Parse) -> None:
    grid = {"tuner": {"searcher": "grid"}}
    ranges = {"head_lr": {"log": [1e-4, 1e-3]}, "dropout": {"uniform": [0, 0.5]}}
    found = faults({**block(**ranges, epochs={"int": [1, 3]}), **grid})

    assert sorted(found) == ["search[0].dropout", "search[0].head_lr"]
    assert "a log range has no grid. List the values" in found["search[0].head_lr"]
    assert parse({**block(epochs={"int": [1, 3]}, head_lr=[1e-4, 1e-3]), **grid})


def test_relative_paths_are_relative_to_the_folder_of_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "specs"
    folder.mkdir()
    (folder / "w.pt").touch()
    (folder / "spec.yaml").write_text(
        "name: a\ntask: image-classification\n"
        "data: {train: ../train, validation: v.csv, test: ./test}\n"
        "search: [{strategy: full, backbone: {name: resnet18, weights: w.pt}}]\n"
        "storage: ../runs\n"
    )
    monkeypatch.chdir(tmp_path)
    spec = load_spec("specs/spec.yaml")

    root = tmp_path.resolve()
    assert spec.data.train == str(root / "train")
    assert spec.data.validation == str(root / "specs" / "v.csv")
    assert spec.data.test == str(root / "specs" / "test")
    assert spec.storage == str(root / "runs")
    assert spec.search[0].vetted()["backbone"]["weights"] == str(root / "specs" / "w.pt")


def test_storage_is_beside_the_spec_when_not_given(raw: Make, parse: Parse, tmp_path: Path) -> None:
    assert parse(raw()).storage == str(tmp_path.resolve() / "runs")


def test_hub_ids_and_uris_stay_as_they_are(raw: Make, parse: Parse) -> None:
    data = {"train": "hub:owner/name", "validation": "s3://b/v.csv", "test": "gs://b/t"}
    spec = parse(raw(data=data))

    assert [spec.data.train, spec.data.validation, spec.data.test] == list(data.values())
    assert parse(raw(data={"train": "a", "validation": 0.2})).data.validation == 0.2


def test_overrides_are_laid_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "name: a\ntask: image-classification\ndata: {train: t}\n"
        "search: [{strategy: full, backbone: resnet18}]\n"
    )
    spec = load_spec(path, ["budget.trials=4", "search.0.backbone_lr={log: [1e-5, 1e-4]}"])

    assert spec.budget.trials == 4
    assert spec.search[0].dimensions["backbone_lr"].extremes == [1e-5, 1e-4]


def test_values_outside_the_facts_table_are_noted_and_taken(block: Make, parse: Parse) -> None:
    spec = parse(block("partial", backbone_lr={"log": [1e-5, 1e-2]}, epochs=20, head="mlp"))

    [note] = notes_on(spec)
    assert note.startswith("search[0].backbone_lr: 0.01 lies outside what usually works")
    assert "for partial (1e-05–0.0001)" in note
    assert notes_on(parse(block("partial"))) == []


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["partial", "full", "resnet18", "default", "~x/y", "hub:a", "s3://b", "a\0"])
)
words = st.sampled_from(
    [
        *ALL_KEYS,
        *(name for model in SECTIONS.values() for name in model.model_fields),
        *("strategy", "backbone", "weights", "unfreeze", "thirds", "stage_decay", "views", "seed"),
        *("log", "int", "uniform", "choice", "elastic"),
    ]
)
junk = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            words | st.text(max_size=4) | st.integers() | st.none(), inner, max_size=5
        )
    ),
    max_leaves=12,
)
sections = st.fixed_dictionaries({}, optional=dict.fromkeys(ALL_KEYS, junk))
forms = st.builds(
    lambda kind, body: {kind: body}, st.sampled_from(["log", "int", "uniform", "choice"]), junk
)
blocks = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(["feature-extraction", "partial", "full", "scratch"]),
        "backbone": st.just("resnet18") | junk,
    },
    optional={
        name: scalars | forms | st.lists(scalars, max_size=4)
        for name in ("unfreeze", "thirds", "stage_decay", "head", "views", "epochs", "accumulate")
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(written=junk | sections)
def test_any_junk_is_a_spec_or_a_spec_error(raw: Make, written: Any) -> None:
    tried = (
        [written, raw(**written)]
        if isinstance(written, dict) and all(isinstance(key, str) for key in written)
        else [written]
    )
    for content in tried:
        _spec_or_spec_error(content)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(written=st.lists(blocks, min_size=1, max_size=2), defaults=st.none() | sections | junk)
def test_any_block_is_read_or_a_spec_error(raw: Make, written: Any, defaults: Any) -> None:
    _spec_or_spec_error(raw(search=written, defaults=defaults))


def _spec_or_spec_error(content: Any) -> None:
    try:
        spec = parse_sweep(content, base=Path("/nowhere"))
    except SpecError:
        return
    assert SweepSpec.model_validate(spec.to_json()) == spec
    assert len(spec.identity("d")) == 64
    for block in spec.search:
        values = block.vetted()
        assert values.pop("backbone")["name"] == "resnet18"
        block.params_class.model_validate(values)
