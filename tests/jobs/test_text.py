"""Texts from a folder to a promoted bundle, by the verbs that images take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.cli import main
from jobs.promote import bundle_trial
from jobs.report import previews
from orchestrator.bundle.attribution import Erasure, explain
from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.manifest import MANIFEST, render, sealed
from orchestrator.bundle.predictor import load_predictor
from orchestrator.report.page import write_report
from orchestrator.report.predictions import read_predictions
from orchestrator.runtime.cluster import Cluster
from orchestrator.runtime.folders import SweepFolder
from orchestrator.runtime.process_cache import open_examples
from orchestrator.spec.parsing import parse_sweep
from orchestrator.tuning.planning import plan_sweep
from orchestrator.tuning.progress import Silent
from orchestrator.tuning.sweep import run_sweep
from tests.jobs.documents import document
from tests.orchestrator.text_material import WORDS, write_encoder, write_texts

pytestmark = pytest.mark.ray

LONG = "of 108 texts have more tokens than the 30 that tiny reads of a text (one window of "


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def sweep(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """Heads, a partly and a wholly fine-tuned encoder, and the same from scratch."""
    root = tmp_path_factory.mktemp("texts")
    write_texts(root / "train", 30, seed=0)
    write_texts(root / "test", 6, seed=1)
    write_encoder(root / "tiny")
    raw = {
        "name": "texts",
        "task": "text-classification",
        "data": {"train": "train", "test": "test"},
        "defaults": {"max_length": 32, "epochs": 2, "batch_size": 8},
        "search": [
            {"strategy": "feature-extraction", "backbone": "tiny", "head_lr": {"log": [1e-3, 0.1]}},
            {"strategy": "partial", "backbone": "tiny", "unfreeze": [1, 2], "views": 2},
            {"strategy": "full", "backbone": "tiny"},
            {"strategy": "scratch", "backbone": "tiny"},
        ],
        "budget": {"trials": 6},
        "storage": "runs",
    }
    heard = Heard()
    outcome = run_sweep(parse_sweep(raw, base=root), progress=heard)
    assert (outcome.ended, outcome.failed) == (6, 0), outcome
    assert sum(LONG in line for line in heard.lines) == 1
    return SweepFolder(outcome.folder)


def test_texts_that_are_cut_off_are_counted_by_plan_sweep_and_report(sweep: SweepFolder) -> None:
    description = sweep.read("sweep.json")
    assert description is not None
    (found,) = [f for f in description["data"]["audit"] if f["kind"] == "long-texts"]
    assert found["message"].startswith(f"{found['count']} {LONG}")
    heard = Heard()
    plan_sweep(sweep.spec(), probe=False, progress=heard)
    assert sum(f"data: note: {found['message']}" in line for line in heard.lines) == 1
    assert found["message"] in write_report(sweep.root).read_text()


def test_trials_share_what_is_frozen_and_fine_tuning_starts_from_the_best_head(
    sweep: SweepFolder,
) -> None:
    plan = sweep.read("plan.json")
    assert plan is not None
    shared = {row["what"] for row in plan["shared"]}
    assert "tiny mean features at 32 tokens" in shared
    assert "tiny activations after stage 1 at 32 tokens, view 1" in shared
    tuned = [r for r in sweep.records().values() if r.experiment.strategy.strategy == "full"]
    assert [set(r.experiment.parents) for r in tuned] == [{"head"}]


@pytest.mark.parametrize("strategy", ["feature-extraction", "partial"])
def test_a_bundle_answers_as_its_trial_did(sweep: SweepFolder, strategy: str) -> None:
    records = sweep.records().values()
    record = next(r for r in records if r.experiment.strategy.strategy == strategy)
    bundle = bundle_trial(sweep, record)
    assert {"config.json", "tokenizer.json"} <= set(bundle.manifest.files)
    path = sweep.trial(record.trial).root / "validation.arrow"
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    examples = open_examples(sweep / "data")
    predictor = load_predictor(bundle, threads=1)
    rows = table.column("example").to_pylist()
    texts = [examples.text(row) for row in rows]
    answers = list(predictor.predict(texts, top=3, batch_size=7))
    probs = [[a["probabilities"][label] for label in bundle.task.labels] for a in answers]
    np.testing.assert_allclose(probs, table.column("prob").to_pylist(), atol=2e-3)

    files = [Path(examples.uri(row)) for row in rows[:3]]
    from_files = list(predictor.predict(files, top=3))
    assert [a["label"] for a in from_files] == [a["label"] for a in answers[:3]]
    assert from_files[0]["uri"] == str(files[0])
    odd = list(predictor.predict(["", "a cat", b"a\0b"]))
    assert [a.get("error", "")[:5] for a in odd] == ["is em", "", "holds"]


@pytest.fixture(scope="module")
def several(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A head and a wholly fine-tuned encoder for texts of up to three labels."""
    root = tmp_path_factory.mktemp("several")
    write_labelled(root / "train.jsonl", 90, seed=0)
    write_labelled(root / "test.jsonl", 30, seed=1)
    write_encoder(root / "tiny")
    raw = {
        "name": "several",
        "task": "text-multilabel-classification",
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "defaults": {"max_length": 32, "batch_size": 8},
        "search": [
            {"strategy": "feature-extraction", "backbone": "tiny", "epochs": 2},
            {"strategy": "full", "backbone": "tiny", "epochs": 6, "backbone_lr": 2e-3},
        ],
        "budget": {"trials": 2},
        "storage": "runs",
    }
    outcome = run_sweep(parse_sweep(raw, base=root))
    assert (outcome.ended, outcome.failed) == (2, 0), outcome
    return SweepFolder(outcome.folder)


def write_labelled(path: Path, n: int, *, seed: int) -> None:
    """Lines of texts with the words of one to three kinds, which are their labels."""
    rng, lines = np.random.default_rng(seed), []
    for number in range(n):
        labels = rng.permutation(list(WORDS))[: int(rng.integers(1, 4))].tolist()
        words = [str(word) for label in labels for word in rng.choice(WORDS[label], 3)]
        text = " the ".join(rng.permutation(words).tolist())
        lines.append(json.dumps({"text": f"{text} {seed * 1000 + number}", "labels": labels}))
    path.write_text("\n".join(lines))


def test_texts_of_several_labels_come_to_a_bundle_that_answers_at_its_threshold(
    several: SweepFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records = several.records().values()
    tuned = next(r for r in records if r.experiment.strategy.strategy == "full")
    assert set(tuned.experiment.parents) == {"head"}
    assert tuned.validation["roc_auc"] > 0.9
    bundle = bundle_trial(several, tuned)
    examples = open_examples(several / "data")
    rows = examples.indices("test")
    texts, truth = [examples.text(int(i)) for i in rows], examples.targets()[rows] == 1
    right = []
    for threshold in (0.5, 0.99):
        folder = tmp_path / str(threshold)
        shutil.copytree(bundle.path, folder)
        content = {**json.loads((folder / MANIFEST).read_bytes()), "threshold": threshold}
        content.pop("digest")
        (folder / MANIFEST).write_bytes(render(sealed(content).to_json()))
        answers = list(load_predictor(open_bundle(folder), threads=1).predict(texts, batch_size=7))
        said = [[label in a["labels"] for label in examples.labels] for a in answers]
        for answer in answers:
            probs = answer["probabilities"]
            assert answer["labels"] == [label for label in probs if probs[label] >= threshold]
        right.append(int((np.array(said) == truth).all(axis=1).sum()))
        test = str(several.root.parent.parent / "test.jsonl")
        capfd.readouterr()
        assert main(["evaluate", str(folder), test, "--json"]) == 0
        told = document(capfd.readouterr().out)
        assert (told["n"], told["wholly_right"]["n"]) == (30, right[-1])
        recalls = {row["label"]: row["recall"] for row in told["per_class"]}
        of_label = (np.array(said) & truth).sum(axis=0) / truth.sum(axis=0)
        assert recalls == pytest.approx(dict(zip(examples.labels, of_label, strict=True)))
    assert right[0] > right[1], "at 0.99 it answers less than at 0.5"
    (tmp_path / "none.csv").write_text("text,labels\n")
    assert main(["evaluate", str(folder), str(tmp_path / "none.csv")]) == 3
    assert main(["predict", str(folder), "artcle.txt"]) == 3
    assert "artcle.txt: no such file or folder" in capfd.readouterr().err
    assert main(["predict", str(folder), "and/or", "a cat."]) == 0


def test_the_report_shows_the_texts_that_were_answered_wrongly(sweep: SweepFolder) -> None:
    page = write_report(sweep.root, preview=previews(sweep.root)).read_text()
    assert "the first window of 32 tokens of a text" in page
    assert page.count('<blockquote class="excerpt">') > 0


def test_the_surest_wrong_answers_come_with_the_words_that_they_rest_on(
    sweep: SweepFolder,
) -> None:
    test = sweep.read("test.json")
    assert test is not None
    record = sweep.records()[test["trial"]]
    task = record.experiment.task
    found = read_predictions(sweep / "test.arrow", split="test", task=task)
    assert found is not None
    wrong = found.probs.argmax(axis=1) != found.truth
    assert len(found.bases) == min(int(wrong.sum()), 8) > 0
    examples, predictor = (
        open_examples(sweep / "data"),
        load_predictor(bundle_trial(sweep, record), runtime="torch", threads=1),
    )
    for row, basis in found.bases.items():
        position = found.examples.tolist().index(row)
        assert wrong[position]
        label = task.labels[int(found.probs[position].argmax())]
        expected = explain(predictor, examples.text(row), label=label)
        assert isinstance(expected, Erasure)
        for one, other in zip(basis, expected.words, strict=False):
            assert (one.start, one.end) == (other.start, other.end)
            assert one.fall == pytest.approx(other.fall, abs=1e-3)
    assert "Without a word that is marked" in write_report(sweep.root).read_text()
