"""An interruption changes nothing, bit for bit; damaged bytes are never loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from orchestrator.spec.record import EpochRow
from orchestrator.spec.strategy import FeatureExtraction, Full, Partial, Strategy
from orchestrator.training.checkpoint import (
    FILES,
    MANIFEST,
    folder_name,
    keep_only,
    newest_checkpoint,
    read_checkpoint,
    restore_optimizer,
    write_checkpoint,
)
from orchestrator.training.io import Decision
from orchestrator.training.optimization import build_optimizer, build_schedule
from orchestrator.training.param_groups import ParamGroup
from orchestrator.training.phases import compile_phases
from orchestrator.training.trial import run_trial
from tests.orchestrator.training.small_trials import (
    InterruptError,
    MakeIO,
    Outcome,
    assert_same,
    dies_after,
    experiment_of,
    run_small,
)

# Their metric falls to the end, or their best epoch is an early one: both must come back.
STRATEGIES: dict[str, Strategy] = {
    "head": FeatureExtraction(epochs=3, batch_size=4, head="mlp", dropout=0.5, views=4),
    "head-sgd": FeatureExtraction(
        epochs=3, batch_size=4, optimizer="sgd", schedule="onecycle", head_lr=0.1
    ),
    "head-images": FeatureExtraction(epochs=3, batch_size=4, augment="trivial", dropout=0.3),
    "partial": Partial(
        unfreeze=2,
        warm_up_epochs=2,
        epochs=2,
        batch_size=4,
        dropout=0.5,
        mixup=0.4,
        backbone_lr=1e-3,
        batch_norm="adapt",
    ),
    "partial-sgd": Partial(
        unfreeze=1,
        warm_up_epochs=2,
        epochs=2,
        batch_size=4,
        cutmix=1.0,
        optimizer="sgd",
        schedule="step",
        accumulate=2,
    ),
    "partial-stored": Partial(
        unfreeze=2,
        warm_up_epochs=1,
        epochs=3,
        batch_size=4,
        augment="none",
        views=4,
        predict_views=2,
        pooling="multi-scale",
        ema_decay=0.9,
        backbone_lr=1e-3,
    ),
    "full": Full(
        warm_up_epochs=1,
        epochs=2,
        batch_size=4,
        optimizer="adam",
        schedule="linear-warm-up-cosine",
        class_weights="balanced",
    ),
}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Outcome]:
    """Outcomes of the runs that nothing interrupts, filled as they are needed."""
    return {}


def n_epochs(strategy: Strategy) -> int:
    return sum(phase.epochs for phase in compile_phases(strategy, 6))


@pytest.mark.parametrize(
    ("name", "epoch"),
    [(name, k) for name, s in STRATEGIES.items() for k in range(1, n_epochs(s) + 1)],
)
def test_a_trial_interrupted_after_an_epoch_ends_bit_equal(
    make_io: MakeIO, undisturbed: dict[str, Outcome], name: str, epoch: int
) -> None:
    experiment = experiment_of(STRATEGIES[name], make_io.examples)
    if name not in undisturbed:
        undisturbed[name] = run_small(experiment, make_io(experiment, "undisturbed"))
    with pytest.raises(InterruptError):
        run_trial(experiment, make_io(experiment, on_report=dies_after(epoch)))
    again = make_io(experiment)
    outcome = run_small(experiment, again)
    assert [row.epoch for row in again.rows] == list(
        range(epoch + 1, n_epochs(STRATEGIES[name]) + 1)
    )
    if epoch == n_epochs(STRATEGIES[name]):  # nothing was left to train: the best epoch comes back
        assert outcome.result.checkpoint == undisturbed[name].result.checkpoint
    assert_same(undisturbed[name], outcome)


def test_a_trial_interrupted_after_every_epoch_and_amid_each_ends_bit_equal(
    make_io: MakeIO,
) -> None:
    strategy = STRATEGIES["partial"]
    experiment = experiment_of(strategy, make_io.examples)
    undisturbed = run_small(experiment, make_io(experiment, "undisturbed"))
    for epoch in range(1, n_epochs(strategy) + 1):
        io = make_io(experiment)
        io.dies_at_step = 2
        with pytest.raises(InterruptError):
            run_trial(experiment, io)
        with pytest.raises(InterruptError):
            run_trial(experiment, make_io(experiment, on_report=dies_after(epoch)))
    assert_same(undisturbed, run_small(experiment, make_io(experiment)))


def test_a_finished_trial_that_is_run_again_trains_nothing(make_io: MakeIO) -> None:
    """The process may die after the last epoch and before the record is written."""
    experiment = experiment_of(FeatureExtraction(epochs=2, batch_size=4), make_io.examples)
    first = run_small(experiment, make_io(experiment))
    again = make_io(experiment)
    second = run_small(experiment, again)
    assert again.steps <= 4 * (2 - (first.result.best_epoch or 0))
    assert_same(first, second)


def test_only_the_best_and_the_newest_epoch_are_kept(make_io: MakeIO) -> None:
    strategy = FeatureExtraction(
        epochs=6, batch_size=4, head_lr=0.3, optimizer="sgd", schedule="constant"
    )
    experiment = experiment_of(strategy, make_io.examples)
    kept: list[set[str]] = []
    best: list[int] = []

    io = make_io(experiment)
    plain = io.report

    def report(row: EpochRow, objective_best: float) -> tuple[Decision, str]:
        losses = [r.validation["log_loss"] for r in (*io.rows, row)]
        best.append(1 + losses.index(min(losses)))
        kept.append({path.name for path in io.checkpoints.iterdir()})
        return plain(row, objective_best)

    io.report = report  # type: ignore[method-assign]
    run_trial(experiment, io)
    expected = [{folder_name(b), folder_name(k)} for k, b in enumerate(best, start=1)]
    assert kept == expected
    assert {len(names) for names in kept} == {1, 2}


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])  # more than the final newline


@pytest.fixture
def interrupted(make_io: MakeIO, undisturbed: dict[str, Outcome]) -> Path:
    """The checkpoints of a trial that died after its third epoch."""
    experiment = experiment_of(FALLING, make_io.examples)
    if "falling" not in undisturbed:
        undisturbed["falling"] = run_small(experiment, make_io(experiment, "undisturbed"))
    io = make_io(experiment, "trial", on_report=dies_after(3))
    with pytest.raises(InterruptError):
        run_trial(experiment, io)
    return io.checkpoints


# Its best epoch is an early one, so that after the third there are two checkpoints.
FALLING = FeatureExtraction(
    epochs=4, batch_size=4, head_lr=0.3, optimizer="sgd", schedule="constant", dropout=0.2
)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "cut", "gone"])
@pytest.mark.parametrize("name", [*sorted(FILES), MANIFEST])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    make_io: MakeIO,
    interrupted: Path,
    undisturbed: dict[str, Outcome],
    name: str,
    damage: Callable[[Path], None],
) -> None:
    experiment = experiment_of(FALLING, make_io.examples)
    names = sorted(path.name for path in interrupted.iterdir())
    assert len(names) == 2
    target = interrupted / names[-1] / name
    if name == MANIFEST and damage is flip:
        flip(target, 4)
    else:
        damage(target)
    found = newest_checkpoint(interrupted)
    assert found is not None
    assert found.folder.name == names[0]
    assert_same(undisturbed["falling"], run_small(experiment, make_io(experiment, "trial")))


def test_with_all_checkpoints_damaged_the_trial_starts_again(
    make_io: MakeIO, interrupted: Path, undisturbed: dict[str, Outcome]
) -> None:
    experiment = experiment_of(FALLING, make_io.examples)
    for folder in interrupted.iterdir():
        flip(folder / "weights.safetensors")
    assert newest_checkpoint(interrupted) is None
    assert_same(undisturbed["falling"], run_small(experiment, make_io(experiment, "trial")))


@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_best_checkpoint_is_computed_again(
    make_io: MakeIO, interrupted: Path, undisturbed: dict[str, Outcome], gone: bool
) -> None:
    """Going on from the newest would end without weights for the best epoch."""
    experiment = experiment_of(FALLING, make_io.examples)
    best = min(interrupted.iterdir())
    if gone:
        shutil.rmtree(best)
    else:
        flip(best / "weights.safetensors")
    assert_same(undisturbed["falling"], run_small(experiment, make_io(experiment, "trial")))


def small_checkpoint(root: Path, epoch: int) -> Path:
    parameter = torch.nn.Parameter(torch.ones(2))
    (phase,) = compile_phases(FeatureExtraction(), 2)
    optimizer = build_optimizer(phase, (ParamGroup("w", 1e-3, 0.0, (parameter,)),))
    return write_checkpoint(
        root,
        epoch,
        weights={"w": parameter},
        optimizer=optimizer,
        schedule=build_schedule(phase, optimizer, steps_per_epoch=2),
        validation={"probs": torch.zeros(1, 2)},
        state={"best_epoch": epoch},
    )


def test_no_flipped_bit_of_any_file_is_ever_loaded(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path, 1)
    for path in folder.iterdir():
        whole = path.read_bytes()
        for position in range(0, len(whole), 7):
            flip(path, position)
            found = read_checkpoint(folder)
            # Blanks between a manifest's entries say nothing: what is loaded is what was written.
            assert found is None or (path.name == MANIFEST and whole[position] in b" \n")
            path.write_bytes(whole)
    assert read_checkpoint(folder) is not None


def test_a_manifest_that_lacks_files_is_no_checkpoint(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path, 1)
    (folder / MANIFEST).write_text("{}")
    assert read_checkpoint(folder) is None


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    first = small_checkpoint(tmp_path, 1)
    shutil.copytree(first, tmp_path / ".epoch-0002.tmp")
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.folder == first
    small_checkpoint(tmp_path, 2)
    assert not (tmp_path / ".epoch-0002.tmp").exists()


def test_keep_only_deletes_the_others(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        small_checkpoint(tmp_path, epoch)
    keep_only(tmp_path, {1, 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001", "epoch-0003"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(
    "schedule", ["constant", "step", "cosine", "onecycle", "linear-warm-up-cosine"]
)
def test_every_optimiser_and_schedule_continues_bit_equal(
    tmp_path: Path, optimizer: str, schedule: str
) -> None:
    strategy = FeatureExtraction.model_validate(
        {"optimizer": optimizer, "schedule": schedule, "epochs": 10, "head_lr": 0.1}
    )
    (phase,) = compile_phases(strategy, 2)

    def built() -> tuple[tuple[Parameter, ...], Optimizer, LRScheduler]:
        weight = torch.nn.Parameter(torch.arange(12.0).reshape(2, 3, 2, 1))
        weight.data = weight.data.to(memory_format=torch.channels_last)
        bias = torch.nn.Parameter(torch.ones(2))
        groups = (ParamGroup("w", 0.1, 0.01, (weight,)), ParamGroup("b", 0.02, 0.0, (bias,)))
        trained = build_optimizer(phase, groups)
        return (weight, bias), trained, build_schedule(phase, trained, steps_per_epoch=2)

    def steps(
        parameters: tuple[Parameter, ...], trained: Optimizer, course: LRScheduler, n: int
    ) -> None:
        for _ in range(n):
            for parameter in parameters:
                parameter.grad = parameter.detach().sin()
            trained.step()
            course.step()

    parameters, trained, course = built()
    steps(parameters, trained, course, 7)
    names = ("w", "b")
    folder = write_checkpoint(
        tmp_path,
        1,
        weights=dict(zip(names, parameters, strict=True)),
        optimizer=trained,
        schedule=course,
        validation={},
        state={"best_epoch": 1},
    )
    steps(parameters, trained, course, 13)
    found = read_checkpoint(folder)
    assert found is not None
    others, continued, its_course = built()
    with torch.no_grad():
        for name, parameter in zip(names, others, strict=True):
            parameter.copy_(found.weights[name])
    restore_optimizer(found, continued, its_course)
    steps(others, continued, its_course, 13)
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))
    rates = [[g["lr"] for g in o.param_groups] for o in (trained, continued)]
    assert rates[0] == rates[1]
