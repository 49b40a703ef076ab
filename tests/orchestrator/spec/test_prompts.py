from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.prompts import TEMPLATES, class_prompts, label_set, read_label_set


def test_a_label_fills_every_template_with_its_underscores_as_spaces() -> None:
    prompts = class_prompts(["red_circle"], ("a {}", "the {}."), None)
    assert prompts == {"red_circle": ("a red circle", "the red circle.")}


def test_a_description_replaces_the_label_and_several_are_all_asked(tmp_path: Path) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text(
        'templates: ["a photo of a {}."]\n'
        "labels:\n"
        "  defective: [cracked solar cell, broken solar cell]\n"
        "  functional: intact solar cell\n"
        "  other:\n"
        "  table: {prompts: [a bare table seen from above]}\n"
    )
    assert read_label_set(file).prompts() == {
        "defective": ("a photo of a cracked solar cell.", "a photo of a broken solar cell."),
        "functional": ("a photo of a intact solar cell.",),
        "other": ("a photo of a other.",),
        "table": ("a bare table seen from above",),
    }


def test_the_default_templates_are_an_ensemble_with_plain_close_up_and_field_wordings() -> None:
    said = " ".join(TEMPLATES["default"])
    assert "a photo of a {}." in TEMPLATES["default"]
    assert "close-up" in said
    assert "field" in said


def test_braces_in_a_label_are_text() -> None:
    assert label_set("a {b} c,d", templates=["x {}"]).prompts()["a {b} c"] == ("x a {b} c",)


@pytest.mark.parametrize(
    ("labels", "templates", "said"),
    [
        ("a,a", [], "'a' appears twice"),
        ("a,b", ["a photo of it"], "needs one {}"),
        ("a,b", ["{} and {}", "{}"], "needs one {}"),
        ("a,b", ["defualt"], "Did you mean 'default'"),
        (" , ", [], "labels"),
        ("no-such-file.yaml", [], "no-such-file.yaml: cannot be read"),
    ],
)
def test_what_is_no_label_set_is_refused_with_what_is_wrong(
    labels: str, templates: list[str], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        label_set(labels, templates=templates)


def test_a_description_of_no_label_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"'red_cicle' is not among the labels\. Did you mean"):
        class_prompts(["red_circle"], "plain", {"red_cicle": ("x",)})


def test_a_file_of_something_else_says_how_labels_are_written(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text('{"classes": ["a"]}')
    with pytest.raises(SpecError, match=r"names no labels\. Write"):
        read_label_set(file)
