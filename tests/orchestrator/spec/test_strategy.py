"""Strategies as data: the vetted defaults, and the rates of the facts table."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.spec.strategy import (
    STRATEGIES,
    FeatureExtraction,
    Full,
    Partial,
    Scratch,
)
from orchestrator.spec.vetted import USUAL_RANGES, with_defaults


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_vetted_default_builds_and_survives_json(name: str) -> None:
    params = STRATEGIES[name]()

    assert params.to_json()["strategy"] == name
    assert STRATEGIES[name].model_validate(params.to_json()) == params


@pytest.mark.parametrize(
    ("cls", "rates"),
    [
        (Full, {"stage_decay": 0.5}),
        (Full, {"thirds": (0.1, 0.2, 1.0)}),
        (Full, {"stage_decay": None, "thirds": None}),
        (Partial, {"thirds": (0.1, 0.2, 1.0)}),
        (Partial, {"stage_decay": None}),
        (Partial, {"stage_decay": 0.7, "thirds": None}),
    ],
)
def test_rates_by_depth_survive_json(cls: type[Full | Partial], rates: dict[str, Any]) -> None:
    params = cls.model_validate(rates)
    again = type(params).model_validate(params.to_json())

    assert again == params
    assert [again.stage_lr(k, 4) for k in range(5)] == [params.stage_lr(k, 4) for k in range(5)]


def test_the_vetted_defaults_are_those_of_the_facts_table() -> None:
    a, b, c = FeatureExtraction(), Partial(), Full()

    assert (a.optimizer, a.head_lr, a.epochs, a.batch_size) == ("adam", 1e-3, 10, 64)
    assert (b.warm_up_epochs, b.warm_up_lr, b.backbone_lr, b.stage_decay) == (5, 1e-3, 1e-4, 0.5)
    assert (b.head_lr, b.optimizer, b.weight_decay, b.schedule) == (3e-4, "adamw", 1e-2, "cosine")
    assert b.epochs == 15
    assert (c.warm_up_epochs, c.backbone_lr, c.thirds) == (5, 1e-4, (0.01, 0.1, 1.0))
    assert (c.head_lr, c.schedule, c.label_smoothing) == (1e-3, "onecycle", 0.1)
    assert (c.clip_norm, c.epochs) == (1.0, 20)


def test_adapters_have_the_vetted_defaults_of_their_paper_and_partial_keeps_its_own() -> None:
    for modality in ("image", "text"):
        given = with_defaults("partial", modality, {"adapter": "lora"})
        lora = Partial.model_validate(given)
        assert (lora.lora_rank, lora.lora_alpha, lora.lora_dropout) == (8, 8, 0.0)
        assert (lora.backbone_lr, lora.head_lr, lora.stage_decay) == (4e-4, 4e-4, None)
        assert [lora.stage_lr(stage, 12) for stage in (1, 12)] == [4e-4, 4e-4]
        plain = Partial.model_validate(with_defaults("partial", modality, {}))
        expected = {"image": (1e-4, 3e-4, 0.5), "text": (2e-5, 5e-5, 0.9)}[modality]
        assert (plain.backbone_lr, plain.head_lr, plain.stage_decay) == expected
        assert (plain.lora_rank, plain.lora_alpha, plain.lora_dropout) == (None, None, None)
        chosen = Partial.model_validate(
            with_defaults("partial", modality, {"adapter": "lora", "thirds": (0.1, 0.5, 1.0)})
        )
        assert chosen.thirds == (0.1, 0.5, 1.0)


def test_adapters_survive_json() -> None:
    params = Partial(adapter="lora", lora_rank=4)
    assert Partial.model_validate(params.to_json()) == params
    assert (params.lora_rank, params.lora_alpha) == (4, 8)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lora_rank": 4}, "lora_rank 4 is for adapter: lora"),
        ({"lora_dropout": 0.0}, "lora_dropout 0.0 is for adapter: lora"),
        ({"adapter": "lora", "batch_norm": "adapt"}, "Use frozen"),
        ({"adapter": "lora", "lora_rank": 0}, "greater than or equal to 1"),
    ],
)
def test_a_shape_without_adapters_and_moving_statistics_beside_them_are_refused(
    values: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        Partial.model_validate(values)


def test_resnet50_in_thirds_has_the_rates_of_the_facts_table() -> None:
    params = Full(backbone_lr=1e-4)
    stem, *layers = (params.stage_lr(stage, 4) for stage in range(5))

    assert [stem, *layers] == pytest.approx([1e-6, 1e-6, 1e-5, 1e-5, 1e-4])
    assert params.head_lr == pytest.approx(10 * params.backbone_lr)


def test_efficientnet_halves_its_rate_from_stage_to_stage() -> None:
    # Blocks 5, 6, 7 of EfficientNet-B2: 2e-5, 4e-5, 8e-5, head 3e-4.
    params = Partial(backbone_lr=8e-5, stage_decay=0.5, unfreeze=3)

    assert [params.stage_lr(stage, 7) for stage in (5, 6, 7)] == pytest.approx([2e-5, 4e-5, 8e-5])
    assert params.head_lr == 3e-4


@pytest.mark.parametrize("n_stages", [2, 3, 4, 5, 7, 12])
@pytest.mark.parametrize(
    "params", [Full(), Partial(), Partial(stage_decay=None)], ids=["full", "partial", "equal"]
)
def test_rates_never_fall_towards_the_output(params: Full | Partial, n_stages: int) -> None:
    rates = [params.stage_lr(stage, n_stages) for stage in range(n_stages + 1)]

    assert rates == sorted(rates)
    assert rates[-1] == params.backbone_lr
    assert min(rates) > 0


def test_two_rules_for_the_rates_of_earlier_stages_are_refused() -> None:
    for cls in (Partial, Full):
        with pytest.raises(ValidationError, match="stage_decay and thirds"):
            cls(stage_decay=0.5, thirds=(0.1, 0.2, 1.0))


def test_more_parts_than_examples_in_a_batch_are_refused() -> None:
    with pytest.raises(ValidationError, match="accumulate 64 is more than batch_size 32"):
        Scratch(accumulate=64)


@pytest.mark.parametrize("strategy", sorted(USUAL_RANGES))
def test_the_usual_ranges_name_parameters_and_are_allowed(strategy: str) -> None:
    cls = STRATEGIES[strategy]
    for name, bounds in USUAL_RANGES[strategy].items():
        assert bounds[0] <= bounds[1]
        for value in bounds:
            values: dict[str, Any] = {name: value}
            assert getattr(cls.model_validate(values), name) == value


def test_a_published_configuration_can_be_expressed() -> None:
    # EfficientNet-B4 of the facts file; its head rate lies outside the usual ranges.
    params = Full(
        backbone_lr=1e-4,
        head_lr=5e-4,
        weight_decay=1e-2,
        epochs=30,
        schedule="linear-warm-up-cosine",
        label_smoothing=0.1,
        clip_norm=1.0,
    )

    assert params.to_json()["head_lr"] == 5e-4
