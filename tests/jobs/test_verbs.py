"""What verbs do before they need a model: listings, input files, specs that come along."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.predict import inputs_of
from orchestrator.errors import DataError
from orchestrator.spec.parsing import load_spec
from tests.orchestrator.text_material import write_encoder

SPECS = Path(__file__).parents[2] / "jobs" / "specs"


def test_backbones_are_listed_with_what_they_take(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)}

    lite = rows["tf_efficientnet_lite0"]
    assert (lite["stages"], lite["library"], lite["feature_width"]) == (7, "timm", 1280)
    assert lite["input"]["size"] == 224


def test_backbones_can_be_searched_by_a_part_of_their_name(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["backbones", "--match", "Lite0", "--json"]) == 0

    names = [row["name"] for row in json.loads(capfd.readouterr().out)]
    assert "tf_efficientnet_lite0" in names
    assert all("lite0" in name for name in names)


def test_people_see_a_table_of_backbones(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "--match", "tf_efficientnet_lite0"]) == 0

    assert re.search(r"tf_efficientnet_lite0 .* 3\.4 M .* 7 .* 1280 .* 224", capfd.readouterr().out)


def test_clips_are_listed_with_the_backbones_and_alone_for_zero_shot(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["backbones", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)}
    assert rows["clip:ViT-L-14/laion2b_s32b_b82k"]["stages"] == 24
    assert main(["backbones", "--task", "zero-shot-image-classification", "--all", "--json"]) == 0
    names = [row["name"] for row in json.loads(capfd.readouterr().out)]
    assert all(name.startswith("clip:") for name in names)
    assert "clip:ViT-B-16-SigLIP/webli" in names
    assert "clip:ViT-B-32/openai" not in names, "its activation is another"


def test_inputs_are_files_and_what_lies_in_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "sub/c.jpg", ".hidden.png", ".cache/d.png", "sub/.x/e.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    single = tmp_path / "z.png"
    single.touch()

    found = list(inputs_of([str(single), str(tmp_path / "images")], texts=False))

    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["z.png", "images/a.png", "images/b.png", "images/sub/c.jpg"]


def test_a_folder_below_a_hidden_one_can_be_named(tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "a.png").touch()

    assert list(inputs_of([str(tmp_path / ".data")], texts=False)) == [tmp_path / ".data" / "a.png"]


def test_an_input_that_is_not_there_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png: no such file or folder"):
        list(inputs_of([str(tmp_path / "none.png")], texts=False))


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_spec_that_comes_along_is_valid(path: Path, tmp_path: Path) -> None:
    # Its weights are written by `python -m jobs.elpv` and its like; others stand in for them.
    weights = tmp_path / "w.pth"
    weights.touch()
    text = re.sub(r"weights: [^}\s]+", f"weights: {weights}", path.read_text(encoding="utf-8"))
    text = re.sub(
        r"folder: [^}\s]+", f"folder: {write_encoder(tmp_path / 'tiny', n_layers=6)}", text
    )
    text = re.sub(r"max_length: \d+", "max_length: 64", text)
    text = re.sub(r"overlap: \d+", "overlap: 16", text)
    (tmp_path / path.name).write_text(text)

    spec = load_spec(tmp_path / path.name)

    assert spec.name == path.stem


def test_encoders_are_listed_for_text_tasks(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "--task", "text-classification", "--match", "bert-", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert "bert-base-uncased" in {row["name"] for row in rows}
    assert all("bert-" in row["name"].lower() and row["best_for"] for row in rows)
