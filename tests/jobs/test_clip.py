"""A CLIP from the command line: with classes alone, without training and without data."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from tests.orchestrator.clip_material import HELD_OUT, label_of, write_shapes

LABELS = [label_of(pair) for pair in sorted(HELD_OUT)]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(
        tmp_path_factory.mktemp("shapes") / "data", tuple(sorted(HELD_OUT)), 4, seed=6
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def told(capfd: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_predict_needs_names_alone(
    clip_folder: Path, shapes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ",".join(label.replace("_", " ") for label in reversed(LABELS))
    found = told(capfd, "predict", str(clip_folder), str(shapes), "--labels", names)
    for answer in found["answers"]:
        assert answer["label"].replace(" ", "_") == Path(answer["uri"]).parent.name


def test_a_labels_file_describes_classes_by_other_words(
    clip_folder: Path, shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text(
        "templates: plain\n"
        "labels:\n"
        "  stop: [red circle]\n"
        "  go: green square\n"
        "  warn: {prompts: ['a drawing of a blue triangle.', the blue triangle.]}\n"
    )
    picture = str(shapes / "blue_triangle" / "000.png")
    found = told(capfd, "predict", f"clip:{clip_folder}", picture, "--labels", str(file))
    assert found["answers"][0]["label"] == "warn"


def test_evaluate_takes_the_datas_own_names_or_those_that_are_given_in_any_order(
    clip_folder: Path, shapes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = told(capfd, "evaluate", str(clip_folder), str(shapes))
    assert whole["metrics"]["accuracy"] > 0.8
    given = ",".join([*reversed(LABELS), "white_ring"])
    more = told(capfd, "evaluate", str(clip_folder), str(shapes), "--labels", given)
    assert more["metrics"]["accuracy"] > 0.8
    assert more["n"] == whole["n"] == 4 * len(LABELS)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_clip_is_promoted_and_answers_by_name_for_its_labels_and_for_others(
    clip_folder: Path, shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    registry = ("--registry", f"sqlite:///{tmp_path / 'mlflow.db'}")
    labels = ("--labels", ",".join(LABELS))
    told(capfd, "promote", str(clip_folder), "--name", "shapes", *labels, *registry)
    picture = str(shapes / "red_circle" / "000.png")
    own = told(capfd, "predict", "shapes@champion", picture, *registry)
    assert own["answers"][0]["label"] == "red_circle"
    others = ("--labels", "white ring,red circle,blue bar")
    other = told(capfd, "predict", "shapes@champion", picture, *others, *registry)
    assert other["answers"][0]["label"] == "red circle"
    assert other["bundle"] == own["bundle"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "CLIP", "SHAPES"], "has no labels of its own"),
        (["predict", "CLIP", "SHAPES", "--labels", "red " * 20 + ",ring"], "nothing is cut off"),
        (["predict", "CLIP", "SHAPES", "--labels", "a,b", "--templates", "x"], "needs one {}"),
        (
            ["predict", "clip:ViT-B-33/openai", "SHAPES", "--labels", "a,b"],
            "Did you mean 'ViT-B-32",
        ),
        (["promote", "CLIP", "--name", "x"], "--labels: missing"),
        (["promote", "CLIP", "--name", "x", "--labels", "a,b", "--trial", "y"], "no trials"),
        (["promote", "SHAPES", "--name", "x", "--labels", "a,b"], "are for a CLIP"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(
    words: list[str],
    said: str,
    clip_folder: Path,
    shapes: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    places = {"CLIP": str(clip_folder), "SHAPES": str(shapes)}
    assert main([places.get(word, word) for word in words]) == 2
    assert said in capfd.readouterr().err
