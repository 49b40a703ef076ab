"""Domain-adaptive pretraining by the verb, and as the first stage of a sweep."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from rich.console import Console
from safetensors.torch import load_file

from jobs.cli import main
from orchestrator.report.terminal import terminal_summary
from orchestrator.runtime.cluster import Cluster
from orchestrator.runtime.folders import SweepFolder
from orchestrator.spec.parsing import load_spec, parse_sweep
from orchestrator.tuning.planning import plan_sweep
from orchestrator.tuning.progress import Silent
from orchestrator.tuning.sweep import run_sweep
from tests.jobs.documents import document
from tests.orchestrator.text_material import write_encoder, write_phrases, write_texts

pytestmark = pytest.mark.ray

PRETRAINING = {"epochs": 1, "lr": 1e-3, "batch_size": 8, "max_length": 32, "held_out": 0.2}


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("adapting")
    write_texts(found / "train", 20, seed=0)
    write_texts(found / "test", 4, seed=1)
    write_phrases(found / "raw", 30, seed=2)
    write_encoder(found / "tiny")
    return found


@pytest.fixture(scope="module")
def spec_file(root: Path) -> Path:
    adaptive = {
        "strategy": "domain-adaptive",
        "backbone": "tiny",
        "then": "partial",
        "pretraining": {"corpus": "raw", **PRETRAINING},
        "unfreeze": [1, 2],
    }
    raw = {
        "name": "adapted",
        "task": "text-classification",
        "data": {"train": "train", "test": "test"},
        "defaults": {"max_length": 32, "epochs": 1, "batch_size": 8},
        "search": [adaptive],
        "budget": {"trials": 3},
        "storage": "runs",
    }
    path = root / "sweep.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_the_verb_writes_a_folder_once_and_says_what_it_brought(
    cluster: Cluster, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    section = {"backbone": str(root / "tiny"), "corpus": str(root / "raw"), **PRETRAINING}
    spec = {"pretraining": section, "storage": str(tmp_path / "runs")}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(spec))
    assert main(["pretrain", str(tmp_path / "p.yaml"), "--json"]) == 0
    (row,) = document(capfd.readouterr().out)["pretrained"]
    folder = Path(row["folder"])
    assert folder.parent == tmp_path / "runs" / "pretrained"
    assert row["digest"].startswith(folder.name)
    provenance = json.loads((folder / "pretraining.json").read_text())
    assert provenance["after"] == row["after"]
    assert provenance["settings"]["lr"] == PRETRAINING["lr"]
    assert provenance["warm_up"]["head"] == "new"
    assert transformers.AutoModel.from_pretrained(folder).config.hidden_size == 32
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]

    before = (folder / "pretraining.json").stat().st_mtime_ns
    assert main(["pretrain", str(tmp_path / "p.yaml")]) == 0
    assert "held-out perplexity" in capfd.readouterr().out
    assert (folder / "pretraining.json").stat().st_mtime_ns == before

    (folder / "config.json").write_text("{}")
    assert main(["pretrain", str(tmp_path / "p.yaml")]) == 1
    assert "config.json is not what was written" in capfd.readouterr().err


@pytest.mark.slow
def test_several_workers_pretrain_as_one_does(
    cluster: Cluster, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # With dropout each worker would draw units of its own.
    plain = write_encoder(tmp_path / "plain", dropout=0.0)
    section = {"backbone": str(plain), "corpus": str(root / "raw"), **PRETRAINING}
    rows = []
    for n in (1, 2):
        storage = tmp_path / f"runs-{n}"
        spec = {"pretraining": section, "workers": {"per_trial": n}, "storage": str(storage)}
        (tmp_path / "p.yaml").write_text(yaml.safe_dump(spec))
        assert main(["pretrain", str(tmp_path / "p.yaml"), "--json"]) == 0
        (row,) = document(capfd.readouterr().out)["pretrained"]
        folder = Path(row["folder"])
        assert [p.name for p in folder.parent.iterdir()] == [folder.name]
        assert json.loads((folder / "pretraining.json").read_text())["warm_up"]["head"] == "new"
        rows.append((row, load_file(folder / "model.safetensors")))
    (one, alone), (two, together) = rows
    assert abs(one["before"]["loss"] - one["after"]["loss"]) > 1e-3, "nothing was trained"
    for when in ("before", "after"):
        assert two[when] == pytest.approx(one[when], rel=1e-4)
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-4)


def test_bad_specs_and_bad_corpora_have_their_exit_codes(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    section = {"backbone": str(root / "tiny"), "corpus": str(empty)}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"pretraining": section}))
    assert main(["pretrain", str(tmp_path / "p.yaml")]) == 3
    assert "the corpus is empty" in capfd.readouterr().err
    assert main(["pretrain", str(tmp_path / "p.yaml"), "--set", "pretraining.epochs=0"]) == 2
    assert "pretraining.epochs" in capfd.readouterr().err


@pytest.fixture(scope="module")
def sweep(cluster: Cluster, spec_file: Path) -> SweepFolder:
    """Two adapted trials and the default's twin."""
    heard = Heard()
    outcome = run_sweep(load_spec(spec_file), progress=heard)
    assert (outcome.ended, outcome.failed) == (3, 0), heard.lines
    return SweepFolder(outcome.folder)


def test_trials_start_from_the_adapted_backbone_and_the_twin_does_not(
    sweep: SweepFolder, root: Path
) -> None:
    records, starts = sweep.records(), sweep.starts()
    (folder,) = (root / "runs" / "pretrained").iterdir()
    adapted = {n: r for n, r in records.items() if r.experiment.strategy.strategy != "partial"}
    assert len(adapted) == 2
    digest = json.loads((folder / "pretraining.json").read_text())["digest"]
    for record in adapted.values():
        experiment = record.experiment
        assert experiment.strategy.strategy == "domain-adaptive"
        assert experiment.parents["pretraining"] == digest
        assert experiment.backbone.folder == str(folder)
        assert set(experiment.parents) == {"pretraining", "head"}
    (twin,) = records.keys() - adapted.keys()
    (default,) = [name for name in adapted if starts[name].default]
    ours, theirs = records[default].experiment, records[twin].experiment
    assert set(theirs.parents) == {"head"}
    assert theirs.backbone.folder == str(root / "tiny")
    assert ours.weights_digest != theirs.weights_digest
    assert records[default].params == {**records[twin].params, "then": "partial"}


def test_another_sweep_of_the_same_storage_pretrains_nothing(
    sweep: SweepFolder, spec_file: Path
) -> None:
    heard = Heard()
    spec = load_spec(spec_file, ["name=other", "budget.trials=1", "search.0.unfreeze=1"])
    outcome = run_sweep(spec, progress=heard)
    assert outcome.ended == 1
    assert any("is there already" in line for line in heard.lines)
    assert not any(line.startswith("start pretraining") for line in heard.lines)


def test_plan_and_summary_say_what_it_brought(sweep: SweepFolder) -> None:
    plan = sweep.read("plan.json")
    assert plan is not None
    (row,) = plan["pretrainings"]
    assert (row["done"], row["backbone"], row["epochs"]) == (True, "tiny", 1)
    assert row["rows"] > 0
    assert row["before"].keys() == row["after"].keys() == {"loss", "perplexity"}
    assert all(0 <= row["neighbours"][when] <= 1 for when in ("before", "after"))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_summary(sweep.root))
    assert "by pretraining tiny on the domain (paired 95 %" in console.export_text()


def test_a_plan_says_what_a_pretraining_will_cost(
    root: Path, tmp_path: Path, spec_file: Path
) -> None:
    spec = load_spec(spec_file, [f"storage={tmp_path / 'runs'}"])
    _, plan = plan_sweep(spec, probe=True, progress=Silent())
    (row,) = plan["pretrainings"]
    assert not row["done"]
    assert row["seconds"] > 0
    assert plan["forecast"]["seconds"] > row["seconds"]
    assert not list((tmp_path / "runs" / "pretrained").glob("*"))


def test_images_are_adapted_too(
    cluster: Cluster, make_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    block = {
        "strategy": "domain-adaptive",
        "backbone": {"name": "mobilenetv3_small_050", "weights": "none"},
        "then": "partial",
        "pretraining": {"epochs": 1, "batch_size": 16, "image_size": 32, "held_out": 0.2},
        "unfreeze": 1,
        "augment": "none",
    }
    heads = {
        "strategy": "feature-extraction",
        "backbone": block["backbone"],
        "head_lr": {"log": [1e-3, 1e-2]},
    }
    raw = make_spec(tmp_path / "runs", search=[heads, block], budget={"trials": 5})
    outcome = run_sweep(parse_sweep(raw, base=tmp_path))
    assert outcome.failed == 0
    folder = SweepFolder(outcome.folder)
    records = {r.experiment.strategy.strategy: r for r in folder.records().values()}
    adapted, twin = records["domain-adaptive"].experiment, records["partial"].experiment
    (pretrained,) = (tmp_path / "runs" / "pretrained").iterdir()
    assert adapted.backbone.weights == str(pretrained / "model.safetensors")
    assert set(adapted.parents) == {"pretraining", "head"}
    assert (twin.backbone.weights, set(twin.parents)) == ("none", {"head"})
    searched = {record.experiment.digest for record in folder.records().values()}
    assert twin.parents["head"] not in searched  # a head of its own, as the adapted one has
    (row,) = (folder.read("plan.json") or {})["pretrainings"]
    assert row["after"].keys() == {"loss", "spread"}
    assert row["neighbours"].keys() == {"before", "after"}
