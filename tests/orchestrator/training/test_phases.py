"""Each strategy compiles to the phases that the facts table gives it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec.strategy import FeatureExtraction, FineTuning, Full, Partial, Scratch
from orchestrator.training.phases import compile_phases


def test_feature_extraction_trains_the_head_alone_for_ten_epochs_of_adam() -> None:
    (phase,) = compile_phases(FeatureExtraction(), 7)
    assert (phase.name, phase.epochs, phase.head_lr, phase.stage_lrs) == ("head", 10, 1e-3, {})
    assert (phase.optimizer, phase.weight_decay, phase.batch_norm) == ("adam", 1e-4, "frozen")


@pytest.mark.parametrize("strategy", [Partial(), Full()], ids=["partial", "full"])
def test_the_warm_up_is_adamw_at_1e_3_under_onecycle_for_five_head_only_epochs(
    strategy: Partial | Full,
) -> None:
    warm_up = compile_phases(strategy, 7)[0]
    assert (warm_up.name, warm_up.epochs, warm_up.head_lr) == ("warm-up", 5, 1e-3)
    assert (warm_up.optimizer, warm_up.weight_decay) == ("adamw", 1e-2)
    assert (warm_up.schedule, warm_up.stage_lrs, warm_up.batch_norm) == ("onecycle", {}, "frozen")


def test_partial_halves_the_rate_from_stage_to_stage_towards_the_input() -> None:
    _, phase = compile_phases(Partial(unfreeze=3), 7)
    assert phase.stage_lrs == pytest.approx({5: 2.5e-5, 6: 5e-5, 7: 1e-4})
    assert (phase.epochs, phase.head_lr, phase.optimizer) == (15, 3e-4, "adamw")
    assert (phase.weight_decay, phase.schedule) == (1e-2, "cosine")


def test_partial_can_say_the_published_efficientnet_b2_rates() -> None:
    strategy = Partial(unfreeze=3, backbone_lr=8e-5, stage_decay=0.5, head_lr=3e-4)
    _, phase = compile_phases(strategy, 7)
    assert phase.stage_lrs == pytest.approx({5: 2e-5, 6: 4e-5, 7: 8e-5})


def test_full_gives_a_resnet50_the_published_discriminative_rates() -> None:
    _, phase = compile_phases(Full(), 4)
    assert phase.stage_lrs == pytest.approx({0: 1e-6, 1: 1e-6, 2: 1e-5, 3: 1e-5, 4: 1e-4})
    assert (phase.head_lr, phase.epochs, phase.clip_norm) == (1e-3, 20, 1.0)
    assert phase.schedule == "onecycle"


def test_the_published_efficientnet_b4_configuration_can_be_said() -> None:
    strategy = Full(
        backbone_lr=1e-4,
        thirds=(1, 1, 1),
        head_lr=5e-4,
        weight_decay=1e-2,
        epochs=30,
        schedule="linear-warm-up-cosine",
        label_smoothing=0.1,
        warm_up_epochs=0,
    )
    (phase,) = compile_phases(strategy, 7)
    assert set(phase.stage_lrs.values()) == {1e-4}
    assert (phase.head_lr, phase.epochs) == (5e-4, 30)


def test_scratch_trains_everything_at_one_rate_and_its_statistics_follow_the_data() -> None:
    (phase,) = compile_phases(Scratch(), 4)
    assert phase.stage_lrs == dict.fromkeys(range(5), 1e-3)
    assert (phase.head_lr, phase.batch_norm, phase.epochs) == (1e-3, "adapt", 20)
    assert phase.schedule == "linear-warm-up-cosine"


@given(n_stages=st.integers(2, 40), data=st.data())
def test_partial_moves_the_last_stages_and_never_the_stem(
    n_stages: int, data: st.DataObject
) -> None:
    unfreeze = data.draw(st.integers(1, n_stages - 1))
    _, phase = compile_phases(Partial(unfreeze=unfreeze), n_stages)
    assert sorted(phase.stage_lrs) == list(range(n_stages - unfreeze + 1, n_stages + 1))


@given(n_stages=st.integers(2, 40))
@pytest.mark.parametrize(
    "strategy", [Full(), Full(stage_decay=0.7), Full(stage_decay=1.0)], ids=["thirds", "0.7", "1"]
)
def test_no_stage_learns_faster_than_one_nearer_the_head(
    strategy: FineTuning, n_stages: int
) -> None:
    rates = [strategy.stage_lr(stage, n_stages) for stage in range(n_stages + 1)]
    assert rates == sorted(rates)
    assert rates[-1] == strategy.backbone_lr


def test_without_warm_up_epochs_there_is_no_warm_up() -> None:
    assert [p.name for p in compile_phases(Full(warm_up_epochs=0), 4)] == ["full"]
    assert [p.name for p in compile_phases(Partial(warm_up_epochs=2), 4)] == ["warm-up", "partial"]


@pytest.mark.parametrize(
    ("strategy", "reads"),
    [
        (FeatureExtraction(), [True]),
        (FeatureExtraction(augment="light"), [False]),
        (FeatureExtraction(mixup=0.2), [False]),
        (FeatureExtraction(cutmix=0.2), [False]),
        (Partial(augment="standard", mixup=0.2), [True, False]),
        (Partial(augment="none"), [True, False]),
        (Full(), [True, False]),
        (Scratch(augment="none"), [False]),
    ],
)
def test_only_a_phase_with_a_frozen_backbone_and_unchanged_images_reads_features(
    strategy: FeatureExtraction | Partial | Full | Scratch, reads: list[bool]
) -> None:
    assert [phase.from_features for phase in compile_phases(strategy, 4)] == reads
