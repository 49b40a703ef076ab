"""The ladder on a CLIP: zero-shot, a probe that starts from texts, fine-tuning, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from orchestrator.data.examples import Example, Examples, Split
from orchestrator.features.store import FeatureStore
from orchestrator.models.weights import tensors_digest
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.clip_models import parse_clip
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import ObjectiveSpec, TaskSpec
from orchestrator.spec.strategy import FeatureExtraction, Full, Partial, Strategy, ZeroShot
from orchestrator.tasks.task import build_task
from orchestrator.training.bank import can_join, run_bank
from orchestrator.training.checkpoint import read_checkpoint
from orchestrator.training.trial import run_trial
from tests.orchestrator.clip_material import HELD_OUT, draw, label_of
from tests.orchestrator.training.small_trials import (
    InterruptError,
    MakeIO,
    Outcome,
    assert_same,
    initial_backbone,
    run_small,
)

PAIRS = sorted(HELD_OUT)
QUICK: dict[str, Any] = {"batch_size": 8, "epochs": 2, "augment": "none", "head": "text"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """24 training and 20 validation pictures of combinations that the CLIP has never seen.

    They are so noisy that zero-shot is often wrong.
    """
    root, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(4)
    rows = []
    for i in range(44):
        clear = np.asarray(draw(PAIRS[i % 4], rng), np.float64)
        noisy = np.clip(clear + rng.normal(0, 100, clear.shape), 0, 255).astype(np.uint8)
        path = root / f"{i:02d}.png"
        Image.fromarray(noisy).save(path)
        split: Split = "train" if i < 24 else "validation"
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        label = label_of(PAIRS[i % 4])
        rows.append(Example(uri=str(path), content=content, split=split, labels=(label,)))
    labels = [label_of(pair) for pair in PAIRS]
    return Examples.write(root / "index", rows, labels=labels, multilabel=False)


@pytest.fixture(scope="module")
def experiment(shapes: Examples, clip_folder: Path) -> Callable[[Strategy], Experiment]:
    """The experiment that a strategy makes of the tiny CLIP and these pictures."""
    spec = parse_clip(str(clip_folder), base=Path("/"))

    def make(strategy: Strategy) -> Experiment:
        return Experiment(
            task=TaskSpec(kind="image-classification", labels=shapes.labels),
            data_digest=shapes.digest,
            backbone=spec,
            weights_digest=tensors_digest(initial_backbone(spec)),
            input=facts_of(spec).input,
            strategy=strategy,
            objective=ObjectiveSpec(metric="log_loss", mode="min"),
        )

    return make


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("kept") / "features")


@pytest.fixture
def make_clip_io(shapes: Examples, kept: FeatureStore, tmp_path: Path) -> MakeIO:
    return MakeIO(shapes, kept, tmp_path)


@pytest.fixture
def zero_shot(experiment: Callable[[Strategy], Experiment], make_clip_io: MakeIO) -> Outcome:
    made = experiment(ZeroShot())
    return run_small(made, make_clip_io(made, "zero-shot"))


def test_zero_shot_is_one_record_of_what_open_clip_says_and_trains_nothing(
    zero_shot: Outcome, shapes: Examples, clip_folder: Path
) -> None:
    name = f"local-dir:{clip_folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    strategy = ZeroShot()
    from orchestrator.spec.prompts import TEMPLATES

    weights = open_clip.build_zero_shot_classifier(
        model.eval(),
        open_clip.get_tokenizer(name),
        [label.replace("_", " ") for label in shapes.labels],
        TEMPLATES[str(strategy.templates)],
    )
    rows = shapes.indices("validation")
    images = torch.stack([preprocess(shapes.image(int(row))) for row in rows])
    with torch.no_grad():
        cosines = model.encode_image(images, normalize=True) @ weights
        expected = (model.logit_scale.exp() * cosines).softmax(1).numpy()
    result = zero_shot.result
    metrics = build_task(TaskSpec(kind="image-classification", labels=shapes.labels)).metrics(
        expected.astype("float64"), shapes.targets()[rows]
    )
    assert result.validation == pytest.approx(metrics, abs=1e-4)
    np.testing.assert_allclose(zero_shot.probs, expected, atol=1e-4)
    (phase,) = result.phases
    assert (phase.epochs, phase.trainable, phase.groups) == (0, 0, ())
    assert len(result.epochs) == 1


def test_a_bank_measures_zero_shot_as_a_trial_does(
    experiment: Callable[[Strategy], Experiment], make_clip_io: MakeIO, tmp_path: Path
) -> None:
    made = experiment(ZeroShot(templates=("a {}",)))
    assert can_join(made)
    (banked,) = run_bank(
        [made],
        make_clip_io(made, "bank"),
        checkpoints=lambda e: tmp_path / e.id,
        on_epoch=lambda *_: None,
        stopped_by=lambda: None,
    )
    alone = run_trial(made, make_clip_io(made, "alone"))
    assert banked.validation == alone.validation


@pytest.mark.parametrize("strategy", [FeatureExtraction, Partial, Full])
def test_a_text_head_that_has_not_moved_answers_as_zero_shot_does(
    strategy: type[Any],
    experiment: Callable[[Strategy], Experiment],
    make_clip_io: MakeIO,
    zero_shot: Outcome,
) -> None:
    still = {"head_lr": 1e-12, "weight_decay": 0.0}
    if strategy is not FeatureExtraction:
        still |= {"backbone_lr": 1e-12, "warm_up_epochs": 0}
    made = experiment(strategy(**{**QUICK, **still, "epochs": 1}))
    found = run_small(made, make_clip_io(made, strategy.__name__))
    np.testing.assert_allclose(found.probs, zero_shot.probs, atol=1e-4)


def test_a_bank_of_text_heads_ends_as_each_would_alone(
    experiment: Callable[[Strategy], Experiment], make_clip_io: MakeIO, tmp_path: Path
) -> None:
    made = [
        experiment(FeatureExtraction(**{**QUICK, "head_lr": rate, "seed": seed}))
        for rate, seed in ((1e-3, 0), (3e-2, 0), (3e-2, 5))
    ]
    banked = run_bank(
        made,
        make_clip_io(made[0], "bank"),
        checkpoints=lambda e: tmp_path / e.id,
        on_epoch=lambda *_: None,
        stopped_by=lambda: None,
    )
    for one, together in zip(made, banked, strict=True):
        alone = run_small(one, make_clip_io(one, one.id + "-alone"))
        assert together.validation == pytest.approx(alone.result.validation, abs=1e-5)
        folder = tmp_path / one.id / Path(str(together.checkpoint)).name
        kept = read_checkpoint(folder)
        assert kept is not None
        for name, tensor in kept.weights.items():
            torch.testing.assert_close(tensor, alone.tensors[name], rtol=1e-4, atol=1e-5)


def test_a_probe_that_starts_from_texts_beats_zero_shot_and_one_that_does_not(
    experiment: Callable[[Strategy], Experiment], make_clip_io: MakeIO, zero_shot: Outcome
) -> None:
    probe = experiment(FeatureExtraction(**{**QUICK, "head_lr": 1e-2}))
    linear = experiment(FeatureExtraction(**{**QUICK, "head": "linear", "head_lr": 1e-2}))
    found = {
        name: run_trial(made, make_clip_io(made, name)).objective
        for name, made in (("probe", probe), ("linear", linear))
    }
    assert found["probe"] < zero_shot.result.objective
    assert found["probe"] < found["linear"]


@pytest.fixture
def wise(experiment: Callable[[Strategy], Experiment]) -> Experiment:
    """Fine-tuning at rates that go too far."""
    return experiment(
        Partial(
            **QUICK,
            unfreeze=1,
            warm_up_epochs=0,
            backbone_lr=1e-2,
            head_lr=0.3,
            wise_ft=True,
            stored_precision="fp32",  # as the pooled features that zero-shot reads
        )
    )


def test_wise_ft_ends_at_the_best_weights_between_zero_shot_and_the_best_epoch(
    wise: Experiment,
    experiment: Callable[[Strategy], Experiment],
    make_clip_io: MakeIO,
    zero_shot: Outcome,
    shapes: Examples,
) -> None:
    found = run_small(wise, make_clip_io(wise, "wise"))
    plain = experiment(wise.strategy.model_copy(update={"wise_ft": False}))
    tuned = run_small(plain, make_clip_io(plain, "plain"))
    between = found.result.interpolation
    assert between is not None
    assert tuned.result.interpolation is None
    tried = dict(between.objectives)
    assert tried[0.0] == pytest.approx(zero_shot.result.objective, abs=1e-4)
    assert tried[1.0] == pytest.approx(tuned.result.objective, abs=1e-6)
    assert found.result.objective == min(tried.values()) == tried[between.alpha]
    assert 0 < between.alpha < 1, "these rates go too far, and texts alone are not the best"
    assert found.result.best_epoch == tuned.result.best_epoch
    for name, tensor in found.tensors.items():
        ends = zero_shot.tensors[name], tuned.tensors[name]
        torch.testing.assert_close(tensor, torch.lerp(*ends, between.alpha), rtol=1e-4, atol=1e-5)
    rows = shapes.indices("validation")
    task = build_task(wise.task)
    metrics = task.metrics(found.probs.astype("float64"), shapes.targets()[rows])
    assert metrics["log_loss"] == pytest.approx(found.result.objective, rel=1e-2)


def test_a_trial_that_dies_in_its_last_epoch_goes_back_once_and_to_the_same_place(
    wise: Experiment, make_clip_io: MakeIO
) -> None:
    whole = run_small(wise, make_clip_io(wise, "whole"))

    def dies(row: Any) -> Any:
        raise InterruptError

    with pytest.raises(InterruptError):
        run_trial(wise, make_clip_io(wise, "killed", on_report=dies))
    once = run_small(wise, make_clip_io(wise, "killed"))
    assert_same(once, whole)
    assert once.result.interpolation == whole.result.interpolation
    again = run_small(wise, make_clip_io(wise, "killed"))  # all is there but the record
    assert again.result.interpolation == whole.result.interpolation
    assert again.result.objective == whole.result.objective
    assert np.array_equal(again.probs, whole.probs)
