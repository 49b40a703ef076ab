"""Tasks that answer for every token have parameters, metrics and outputs of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.parsing import parse_sweep
from orchestrator.spec.parts import TaskSpec, TextContract, by_position, has_label_sets, metrics_of
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tuning.experiments import ExperimentFactory, backbones_of
from tests.orchestrator.text_material import write_encoder

NAMES, QUESTIONS = "token-classification", "question-answering"


def parsed(
    root: Path, task: str, *, block: dict[str, Any] | None = None, **given: Any
) -> SweepSpec:
    write_encoder(root / "tiny")
    search = [{"strategy": "partial", "backbone": "tiny", "unfreeze": 1, **(block or {})}]
    raw = {"name": "spans", "task": task, "data": {"train": "train"}, "search": search, **given}
    return parse_sweep(raw, base=root)


def faults(root: Path, task: str, **given: Any) -> str:
    with pytest.raises(SpecError) as raised:
        parsed(root, task, **given)
    return str(raised.value)


def test_outputs_are_tags_and_ends_and_otherwise_labels() -> None:
    assert TaskSpec(kind="token-classification", labels=("A", "B")).outputs == (
        "O",
        "B-A",
        "I-A",
        "B-B",
        "I-B",
    )
    assert TaskSpec(kind="question-answering", labels=("answer",)).outputs == ("start", "end")
    assert TaskSpec(kind="text-classification", labels=("x", "y")).outputs == ("x", "y")


@pytest.mark.parametrize(("task", "metric"), [(NAMES, "f1_entity"), (QUESTIONS, "f1_span")])
def test_the_objective_is_the_tasks_own_where_none_is_given(
    tmp_path: Path, task: str, metric: str
) -> None:
    assert parsed(tmp_path, task).objective.metric == metric
    assert parsed(tmp_path, task, objective={"mode": "max"}).objective.metric == metric


def test_another_tasks_metric_is_refused_with_what_there_is(tmp_path: Path) -> None:
    told = faults(tmp_path, QUESTIONS, objective={"metric": "f1_macro"})
    assert (
        "f1_macro is not measured for question-answering. Use one of f1_span, exact_match" in told
    )
    told = faults(tmp_path, "text-classification", objective={"metric": "f1_entity"})
    assert "f1_entity is not measured for text-classification" in told


@pytest.mark.parametrize("name", ["pooling", "views", "predict_views"])
def test_what_is_for_whole_inputs_is_refused(tmp_path: Path, name: str) -> None:
    value = "mean" if name == "pooling" else 2
    told = faults(tmp_path, NAMES, block={name: value})
    assert f"{name} is for tasks that answer once for each input. Leave it out" in told
    assert f"defaults.{name}" in faults(tmp_path, NAMES, defaults={name: value})


def test_overlap_is_for_tokens_and_at_most_half_of_a_window(tmp_path: Path) -> None:
    told = faults(tmp_path, "text-classification", block={"overlap": 8})
    assert "overlap is for tasks that answer for every token. Leave it out" in told
    told = faults(tmp_path, NAMES, block={"overlap": 20, "max_length": 32})
    assert "20 is more than half of the 32 tokens of a window. Use at most 16" in told
    assert "more than half of the 64" in faults(tmp_path, NAMES, block={"overlap": 40})
    long = str(write_encoder(tmp_path / "long", positions=600))  # 512 unless it is told otherwise
    parsed(tmp_path, NAMES, block={"backbone": long, "overlap": 280, "max_length": 580})


def test_pooling_none_cannot_be_asked_for(tmp_path: Path) -> None:
    told = faults(tmp_path, "text-classification", block={"pooling": "none"})
    assert "none is what tasks have that answer for every token" in told


def test_a_screen_is_refused(tmp_path: Path) -> None:
    told = faults(tmp_path, NAMES, screen={"keep": 1})
    assert "ranks backbones by features of whole texts, which token-classification has none" in told


def test_experiments_work_on_tokens_in_windows_that_overlap(tmp_path: Path) -> None:
    spec = parsed(tmp_path, NAMES, block={"max_length": 32})
    factory = ExperimentFactory(
        task=TaskSpec(kind="token-classification", labels=("A",)),
        data_digest="d",
        objective=spec.objective,
        weights_digests=dict.fromkeys(backbones_of(spec), "w"),
    )
    experiment = factory.make(spec.search[0], spec.search[0].vetted())
    assert experiment.strategy.pooling == "none"
    assert isinstance(experiment.input, TextContract)
    assert (experiment.input.size, experiment.input.overlap) == (32, 8)


def test_each_kind_is_of_one_sort() -> None:
    assert by_position("token-classification")
    assert by_position("question-answering")
    assert not by_position("text-multilabel-classification")
    assert has_label_sets("token-classification")
    assert not has_label_sets("question-answering")
    assert metrics_of("image-classification")[0] == "f1_macro"
