"""Tagged words and answered questions from a file to a promoted bundle, by the verbs of texts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.cli import main
from jobs.promote import bundle_trial
from jobs.report import previews
from jobs.templated import conll, passages, tagged_sentences
from orchestrator.bundle.predictor import load_predictor
from orchestrator.report.page import write_report
from orchestrator.report.predictions import read_predictions
from orchestrator.runtime.cluster import Cluster
from orchestrator.runtime.folders import SweepFolder
from orchestrator.spec.parsing import parse_sweep
from orchestrator.tasks.task import build_task
from orchestrator.tuning.sweep import run_sweep
from tests.jobs.documents import document
from tests.orchestrator.text_material import words_of, write_encoder

pytestmark = pytest.mark.ray

Run = Callable[..., tuple[int, Any]]
KINDS = ("token-classification", "question-answering")
CORPUS = {"epochs": 1, "lr": 1e-3, "batch_size": 8, "max_length": 32, "held_out": 0.2}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """A verb's exit code and what it prints as JSON."""

    def run(*words: str) -> tuple[int, Any]:
        capfd.readouterr()
        code = main([*words, "--json"])
        return code, document(capfd.readouterr().out)

    return run


@pytest.fixture(scope="module")
def sweeps(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SweepFolder]:
    """An encoder under every strategy, LoRA and pretraining on raw text among them, by task."""
    root = tmp_path_factory.mktemp("spans")
    for split, n in (("train", 60), ("test", 12)):
        seed = int(split == "test")
        sentences = tagged_sentences(n, seed=seed, second_half=False)
        (root / f"token-classification-{split}").write_text(conll(sentences))
        asked = passages(n // 3, seed=seed, second_half=False, none=0.2, n_things=1)
        (root / f"question-answering-{split}.json").write_text(json.dumps(asked))
    (root / "raw").mkdir()
    for number, sentence in enumerate(tagged_sentences(60, seed=2, second_half=False)):
        (root / "raw" / f"{number}.txt").write_text(" ".join(word for word, _ in sentence))
    write_encoder(root / "tiny", words=words_of(*map(_text, root.iterdir())))
    return {kind: SweepFolder(_swept(root, kind).folder) for kind in KINDS}


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _swept(root: Path, kind: str) -> Any:
    suffix = "" if kind == "token-classification" else ".json"
    raw = {
        "name": kind,
        "task": kind,
        "data": {"train": f"{kind}-train{suffix}", "test": f"{kind}-test{suffix}"},
        "defaults": {"max_length": 48, "overlap": 12, "epochs": 2, "batch_size": 8},
        "search": [
            {"strategy": "feature-extraction", "backbone": "tiny", "head_lr": {"log": [1e-3, 0.1]}},
            {"strategy": "partial", "backbone": "tiny", "unfreeze": 2},
            {"strategy": "partial", "backbone": "tiny", "unfreeze": 2, "adapter": "lora"},
            {"strategy": "full", "backbone": "tiny"},
            {"strategy": "scratch", "backbone": "tiny", "lr": 2e-3},
            {
                "strategy": "domain-adaptive",
                "backbone": "tiny",
                "then": "full",
                "pretraining": {"corpus": "raw", **CORPUS},
            },
        ],
        "budget": {"trials": 7},
        "storage": "runs",
    }
    outcome = run_sweep(parse_sweep(raw, base=root))
    assert (outcome.ended, outcome.failed) == (7, 0), outcome
    assert outcome.test is not None
    return outcome


@pytest.mark.parametrize("kind", KINDS)
def test_trials_share_hidden_states_and_fine_tuning_starts_from_the_best_head(
    sweeps: dict[str, SweepFolder], kind: str
) -> None:
    plan = sweeps[kind].read("plan.json")
    assert plan is not None
    shared = {row["what"] for row in plan["shared"]}
    assert shared == {f"tiny activations after stage {k} at 48 tokens" for k in (1, 3)}
    records = sweeps[kind].records().values()
    by_strategy = {r.experiment.strategy.strategy: r for r in records}
    assert set(by_strategy["full"].experiment.parents) == {"head"}
    assert by_strategy["feature-extraction"].params["pooling"] == "none"


@pytest.mark.parametrize("strategy", ["full", "partial", "domain-adaptive"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_says_what_its_trial_said(
    sweeps: dict[str, SweepFolder], kind: str, strategy: str
) -> None:
    folder = sweeps[kind]
    records = folder.records().values()
    record = next(r for r in records if r.experiment.strategy.strategy == strategy)
    assert (record.params.get("adapter") == "lora") is (strategy == "partial")
    bundle = bundle_trial(folder, record)
    assert {"config.json", "tokenizer.json"} <= set(bundle.manifest.files)
    path = folder.trial(record.trial).root / "validation.arrow"
    found = read_predictions(path, split="validation", task=bundle.task)
    assert found is not None
    task = build_task(bundle.task)
    measured = task.metrics(found.probs, found.truth)
    assert measured == pytest.approx(record.validation, rel=1e-4)
    predictor = load_predictor(bundle, threads=1)
    if kind == "question-answering":
        inputs = [{"question": q.question, "context": q.context} for q in found.truth]
        answers = list(predictor.predict(inputs, batch_size=7))
        for answer, spans, asked in zip(answers, found.probs, found.truth, strict=True):
            assert answer["score"] == pytest.approx(spans[0, 2], abs=2e-3)
            if answer["start"] is not None:
                span = asked.context[answer["start"] : answer["end"]]
                assert span == answer["answer"]
            assert len(answer["alternatives"]) <= 4
    else:
        answers = list(predictor.predict([t.text for t in found.truth], batch_size=7))
        for answer, text in zip(answers, found.truth, strict=True):
            for entity in answer["entities"]:
                assert text.text[entity["start"] : entity["end"]] == entity["text"]
                assert entity["label"] in bundle.task.labels
                assert 0 < entity["score"] <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_measures_on_the_annotated_words(
    sweeps: dict[str, SweepFolder], kind: str, run: Run
) -> None:
    folder = sweeps[kind]
    test = folder.read("test.json")
    assert test is not None
    bundle = bundle_trial(folder, folder.records()[test["trial"]])
    suffix = "" if kind == "token-classification" else ".json"
    data = folder.root.parent.parent / f"{kind}-test{suffix}"
    code, found = run("evaluate", str(bundle.path), str(data))
    assert code == 0
    assert found["metrics"] == pytest.approx(test["metrics"], rel=1e-3, abs=1e-4)


def test_questions_come_as_lines_of_a_file_and_of_stdin(
    sweeps: dict[str, SweepFolder], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweeps["question-answering"]
    bundle = bundle_trial(folder, next(iter(folder.records().values())))
    line = json.dumps({"question": "Who leads it?", "context": "It is led by Anna Novak ."})
    # What other programs take for the end of a line may stand within a JSON string.
    apart = line.replace("led by", "led\u2028by\x85")
    (tmp_path / "questions.jsonl").write_text(f"{line}\n\n{apart}\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\nnonsense\n"))
    code, found = run("predict", str(bundle.path), str(tmp_path / "questions.jsonl"), "-", line)
    assert code == 1
    assert [set(answer) - {"uri"} for answer in found["answers"]] == [
        {"answer", "start", "end", "score", "alternatives"},
        {"answer", "start", "end", "score", "alternatives"},
        {"answer", "start", "end", "score", "alternatives"},
        {"error"},
        {"answer", "start", "end", "score", "alternatives"},
    ]
    assert "Give {" in found["answers"][3]["error"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("token-classification", "Weakest kind of entity"),
        ("question-answering", "kind of question"),
    ],
)
def test_the_report_marks_mistakes_in_their_texts(
    sweeps: dict[str, SweepFolder], kind: str, told: str
) -> None:
    folder = sweeps[kind].root
    page = write_report(folder, preview=previews(folder)).read_text()
    assert told in page
    assert "windows of 48 tokens, which share 12 with the next" in page
    assert '<mark class="' in page


@pytest.mark.parametrize("kind", KINDS)
def test_advice_is_measured_on_tokens(sweeps: dict[str, SweepFolder], kind: str, run: Run) -> None:
    root = sweeps[kind].root.parent.parent
    suffix = "" if kind == "token-classification" else ".json"
    data, encoder = str(root / f"{kind}-train{suffix}"), str(root / "tiny")
    code, found = run("advise", data, "--task", kind, "--backbone", encoder, "--threads", "1")
    assert code == 0
    (row,) = found["advice"]["backbones"]
    assert np.isfinite([row["log_me"], row["knn_accuracy"], row["probe_accuracy"]]).all()
    assert 0 < row["knn_accuracy"] <= 1
