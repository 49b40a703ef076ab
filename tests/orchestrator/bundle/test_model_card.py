from __future__ import annotations

import pytest

from orchestrator.bundle.manifest import Evaluation, Scores
from orchestrator.bundle.model_card import model_card
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import TaskSpec
from orchestrator.spec.record import Record
from orchestrator.tasks.metrics import wilson_interval

VALIDATION = Evaluation(metrics={"accuracy": 0.8, "log_loss": 0.5})
PER_CLASS = {"label": "dark", "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 8}


def test_the_card_says_what_was_done_and_how_well_it_went(
    experiment: Experiment, record: Record
) -> None:
    low, high = wilson_interval(90, 100)
    test = Evaluation(
        metrics={"accuracy": 0.9, "log_loss": 0.4},
        n_examples=100,
        intervals={"accuracy": (low, high)},
        per_class=[PER_CLASS],
    )
    card = model_card(
        experiment, record, Scores(validation=VALIDATION, test=test, n_train_examples=1200)
    )
    for part in (
        "# Image classification with `mobilenetv3_small_100`",
        "`good`, `cracked`, `dark`",
        "| training | 1,200 |",
        "| validation | not recorded |",
        "| test | 100 |",
        "Strategy `feature-extraction`",
        "| head | 1 | 3,075 of 1,503,075 | head 0.001 |",
        "| seed | `7` |",
        f"| accuracy | 0.8000 | 0.9000 [{low:.4f}, {high:.4f}] |",
        "| log_loss (lower is better) | 0.5000 | 0.4000 |",
        "The test set was read once",
        "### By class, on test",
        "| `dark` | 0.500 | 0.250 | 0.333 | – | 8 |",
        "## Intended use and limits",
        experiment.digest,
        experiment.data_digest,
        experiment.weights_digest,
        "orchestrator predict",
        "load_predictor(open_bundle(",
    ):
        assert part in card


def test_a_model_without_a_test_does_not_look_tested(
    experiment: Experiment, record: Record
) -> None:
    card = model_card(experiment, record, Scores(validation=VALIDATION))
    assert "No test set was given" in card
    assert "By class" not in card
    assert "| metric | validation |\n" in card


def test_equal_arguments_give_equal_cards(experiment: Experiment, record: Record) -> None:
    scores = Scores(validation=VALIDATION)
    assert model_card(experiment, record, scores) == model_card(experiment, record, scores)


@pytest.mark.parametrize("label", ["a|b", "a`b", "a\n## Forged\nb", "<script>alert(1)</script>"])
def test_a_label_cannot_leave_its_cell(experiment: Experiment, record: Record, label: str) -> None:
    task = TaskSpec(kind="image-multilabel-classification", labels=(label, "other"))
    evaluation = Evaluation(metrics={"accuracy": 0.5}, per_class=[{**PER_CLASS, "label": label}])
    card = model_card(
        experiment.model_copy(update={"task": task}), record, Scores(validation=evaluation)
    )
    assert "any number of these labels (2)" in card
    row = next(line for line in card.splitlines() if "0.500 | 0.250" in line)
    assert row.replace("\\|", "").count("|") == 7
    assert row.count("`") == 2
    assert "\n## Forged" not in card


def test_the_python_of_the_card_is_python(experiment: Experiment, record: Record) -> None:
    card = model_card(experiment, record, Scores(validation=VALIDATION))
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    for line in code.splitlines():
        if line.startswith("from "):
            exec(line, {})
