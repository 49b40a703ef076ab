"""`init` writes a spec that can be run as it is, and never overwrites one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import main
from orchestrator.spec.parsing import load_spec, notes_on
from orchestrator.spec.text_encoders import TEXT_ENCODERS
from tests.orchestrator.text_material import write_encoder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with data in it."""
    (tmp_path / "data" / "cells" / "train" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


def test_the_spec_that_is_written_is_valid(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "data/cells/train"]) == 0
    captured = capfd.readouterr()
    spec = load_spec("sweep.yaml")

    assert "wrote sweep.yaml; next: orchestrator plan sweep.yaml" in captured.out
    assert spec.name == "cells"
    assert spec.data.train == str(folder / "data" / "cells" / "train")
    assert spec.objective.metric == "f1_macro"
    assert [block.strategy for block in spec.search] == ["feature-extraction", "partial"]
    assert notes_on(spec) == []


def test_what_is_commented_out_is_valid_too(folder: Path) -> None:
    assert main(["init", "data/cells/train"]) == 0
    text = Path("sweep.yaml").read_text()
    lines = (
        "- strategy: full",
        "- strategy: domain-adaptive",
        "  then: partial",
        "  pretraining: {",
    )
    for line in (*lines, "- strategy: scratch", "  backbone: [tf", "test: path"):
        assert f"# {line}" in text
        text = text.replace(f"# {line}", line)
    Path("all.yaml").write_text(text)

    spec = load_spec("all.yaml")
    strategies = [block.strategy for block in spec.search]
    assert strategies[2:] == ["full", "domain-adaptive", "scratch", "partial"]  # the last: a twin
    assert spec.data.test == str(folder / "path" / "to" / "test")


def test_the_spec_may_lie_elsewhere(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["init", "data/cells", "--out", "specs/new/my spec.yaml", "--json"]

    assert main(words) == 0
    assert json.loads(capfd.readouterr().out) == {"spec": "specs/new/my spec.yaml"}
    spec = load_spec("specs/new/my spec.yaml")
    assert spec.data.train == str(folder / "data" / "cells")


def test_an_existing_file_is_never_overwritten(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("sweep.yaml").write_text("mine")

    assert main(["init", "data/cells"]) == 2
    assert "is there already" in capfd.readouterr().err
    assert Path("sweep.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["a: b", "c #d", "1e5", "true", "null", "-x", "*y", "{z}", "q'\"", "é"]
)
def test_any_folder_can_be_named(folder: Path, name: str) -> None:
    Path(name).mkdir()

    assert main(["init", f"./{name}"]) == 0
    assert load_spec("sweep.yaml").data.train == str(folder / name)


def test_a_data_set_on_the_hub_stays_as_it_is(folder: Path) -> None:
    assert main(["init", "hub:owner/Some_Name", "--task", "image-multilabel-classification"]) == 0
    spec = load_spec("sweep.yaml")

    assert (spec.name, spec.data.train) == ("some-name", "hub:owner/Some_Name")
    assert spec.objective.metric == "roc_auc"
    assert spec.task == "image-multilabel-classification"


def test_a_text_spec_is_valid_with_any_encoder(folder: Path) -> None:
    write_encoder(folder / "tiny")
    assert main(["init", "data/cells/train", "--task", "text-classification"]) == 0
    text = Path("sweep.yaml").read_text()
    assert TEXT_ENCODERS[0] in text
    text = text.replace(TEXT_ENCODERS[0], "./tiny").replace("[1, 2, 4]", "[1, 2]")
    lines = ("- strategy: full", "- strategy: domain-adaptive", "  then: full", "  pretraining:")
    for line in (*lines, "- strategy: scratch", "  backbone: ./tiny"):
        assert f"# {line}" in text
        text = text.replace(f"# {line}", line)
    Path("all.yaml").write_text(text)

    spec = load_spec("all.yaml")
    strategies = [block.strategy for block in spec.search]
    assert strategies[2:] == ["full", "domain-adaptive", "scratch", "full"]  # the last: a twin
    assert notes_on(spec) == []


@pytest.mark.parametrize("task", ["token-classification", "question-answering"])
def test_a_spec_for_tokens_is_valid_with_its_own_metrics(folder: Path, task: str) -> None:
    assert main(["init", "data/cells", "--task", task]) == 0
    text = Path("sweep.yaml").read_text().replace(TEXT_ENCODERS[0], "tiny")
    write_encoder(folder / "tiny")
    text = text.replace("max_length: 256", "max_length: 64").replace("overlap: 64", "overlap: 16")
    for line in ("- strategy: partial", "  unfreeze: [2, 4]", "- strategy: scratch", "  backbone"):
        text = text.replace(f"# {line}", line)
    Path("all.yaml").write_text(text.replace("unfreeze: [2, 4]", "unfreeze: [1, 2]"))

    spec = load_spec("all.yaml")
    assert spec.task == task
    strategies = [block.strategy for block in spec.search]
    assert strategies == ["feature-extraction", "full", "partial", "scratch"]
    assert f"metric: {spec.objective.metric}}}       # {spec.objective.metric}, " in text
