"""A search block takes its own strategy's parameters, each in every form of search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.backbone_table import facts_for
from orchestrator.spec.parsing import notes_on
from orchestrator.spec.search_space import Choice, Constant, Range
from orchestrator.spec.strategy import STRATEGIES
from orchestrator.spec.sweep import SweepSpec

Make = Callable[..., dict[str, Any]]
Parse = Callable[[Any], SweepSpec]
Faults = Callable[[Any], dict[str, str]]

VIT = "vit_tiny_patch16_224"
RESNET = {"name": "resnet18", "weights": "default"}


@pytest.mark.parametrize(
    ("strategy", "name", "written", "dimension"),
    [
        ("partial", "unfreeze", 2, Constant(value=2)),
        ("partial", "unfreeze", [1, 2], Choice(values=(1, 2))),
        ("partial", "unfreeze", {"choice": [1, 2]}, Choice(values=(1, 2))),
        ("partial", "unfreeze", {"int": [1, 3]}, Range(kind="int", low=1, high=3)),
        ("partial", "backbone_lr", {"log": [1e-5, 1]}, Range(kind="log", low=1e-5, high=1)),
        ("full", "dropout", {"uniform": [0, 0.5]}, Range(kind="uniform", low=0, high=0.5)),
        ("full", "head", ["mlp", "linear"], Choice(values=("mlp", "linear"))),
        ("full", "thirds", [0.1, 0.2, 1], Constant(value=[0.1, 0.2, 1])),
        ("full", "thirds", [[0.1, 0.2, 1]], Choice(values=([0.1, 0.2, 1],))),
        ("full", "thirds", {"choice": [[0.1, 0.2, 1], [1, 1, 1]]},
         Choice(values=([0.1, 0.2, 1], [1, 1, 1]))),
        ("full", "thirds", [None, [1, 1, 1]], Choice(values=(None, [1, 1, 1]))),
        ("full", "stage_decay", [None, 0.5], Choice(values=(None, 0.5))),
        ("full", "thirds", None, Constant(value=None)),
        ("scratch", "views", [1, 8], Choice(values=(1, 8))),
    ],
)  # fmt: skip
def test_each_form_of_search_is_a_dimension(
    block: Make, parse: Parse, strategy: str, name: str, written: Any, dimension: Any
) -> None:
    assert parse(block(strategy, **{name: written})).search[0].dimensions[name] == dimension


@pytest.mark.parametrize(
    ("strategy", "name", "written", "told"),
    [
        ("partial", "unfreeze", True, "True must be a valid integer"),
        ("partial", "unfreeze", 1.5, "1.5 must be a valid integer"),
        ("partial", "unfreeze", 2.0, "2.0 must be a valid integer"),
        ("partial", "unfreeze", "2", "'2' must be a valid integer"),
        ("partial", "unfreeze", None, "None must be a valid integer"),
        ("partial", "unfreeze", 0, "greater than or equal to 1"),
        ("partial", "unfreeze", 4, "4 is all that resnet18 has (4 stages). Use 1–3, or strategy"),
        ("partial", "unfreeze", 9, "9 is more than resnet18 has (4 stages). Use 1–3, or strategy"),
        ("partial", "unfreeze", [1, 9], "9 is more than resnet18 has"),
        ("partial", "unfreeze", {"int": [1, 9]}, "9 is more than resnet18 has"),
        ("partial", "unfreeze", {"int": [1, 2.0]}, "needs whole numbers"),
        ("partial", "unfreeze", {"uniform": [1, 3]}, "must be a valid integer"),
        ("full", "backbone_lr", {"log": [1e-3, 1e-4]}, "the lower one first"),
        ("full", "backbone_lr", {"log": [1e-3, 1e-3]}, "the lower one first"),
        ("full", "backbone_lr", {"log": [0, 1e-3]}, "must start above 0"),
        ("full", "backbone_lr", {"log": [1e-3]}, "two numbers"),
        ("full", "backbone_lr", {"log": [1e-3, "x"]}, "two numbers"),
        ("full", "backbone_lr", {"log": [False, True]}, "two numbers"),
        ("full", "backbone_lr", {"log": 1e-3}, "two numbers"),
        ("full", "backbone_lr", {"log": [1e-3, 1e-2], "int": [1, 2]}, "not a form of search"),
        ("full", "backbone_lr", {"lgo": [1e-3, 1e-2]}, "Did you mean 'log'?"),
        ("full", "backbone_lr", {}, "not a form of search"),
        ("full", "backbone_lr", [], "no list of at least one value"),
        ("full", "backbone_lr", [1e-3, 1e-3], "appears twice"),
        ("full", "backbone_lr", {"uniform": [0, 1]}, "0.0 must be greater than 0"),
        ("full", "backbone_lr", "fast", "'fast' must be a valid number"),
        ("full", "clip_norm", float("inf"), "finite"),
        ("full", "clip_norm", {"uniform": [0, float("inf")]}, "two numbers"),
        ("full", "clip_norm", {"uniform": [0, 10**400]}, "two numbers"),
        ("full", "clip_norm", {"uniform": [float("nan"), 1]}, "two numbers"),
        ("full", "head", "mpl", "'mpl' is not one of linear, mlp, text. Did you mean 'mlp'?"),
        ("full", "head", {"uniform": [0, 1]}, "some of linear, mlp"),
        ("full", "head", [["mlp"]], "is not one of linear, mlp"),
        ("full", "head", [{1: 2, "a": 3}], "is not one of linear, mlp"),
        ("full", "views", True, "True is not one of fresh, 1, 2, 4, 8"),
        ("full", "views", {"int": [1, 8]}, "some of fresh, 1, 2, 4, 8"),
        ("full", "image_size", {"int": [128, 224]}, "no range: trials share what is computed"),
        ("full", "crop_fraction", {"uniform": [0.8, 1.0]}, "List the values"),
        ("partial", "hidden", {"int": [8, 16]}, "no range"),
        ("full", "thirds", [0.1, 0.2], "too few values"),
        ("full", "thirds", [1, 1, 1, 1], "at most 3"),
        ("full", "thirds", [0, 0.1, 1], "greater than 0"),
        ("full", "thirds", [[1, 1, 1], [1, 1, 1]], "appears twice"),
    ],
)
def test_an_impossible_value_is_told_with_what_is_allowed(
    block: Make, faults: Faults, strategy: str, name: str, written: Any, told: str
) -> None:
    found = faults(block(strategy, **{name: written}))

    assert list(found) == [f"search[0].{name}"]
    assert told in found[f"search[0].{name}"]


def test_every_backbone_that_is_too_shallow_is_told(block: Make, parse: Parse) -> None:
    both = ["resnet18", "tf_efficientnet_lite0"]

    assert parse(block("partial", backbone="tf_efficientnet_lite0", unfreeze=6))
    for deepest, named in ((4, ["resnet18"]), (7, both)):
        with pytest.raises(Exception, match="Use 1–3, or strategy: full") as caught:
            parse(block("partial", backbone=both, unfreeze=deepest))
        for name in both:
            told = f"{name} has ({facts_for(name).n_stages} stages)"
            assert (told in str(caught.value)) == (name in named)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_block_of_defaults_alone_is_whole(block: Make, parse: Parse, strategy: str) -> None:
    clip = {"backbone": "clip:ViT-B-32/laion2b_s34b_b79k"} if strategy == "zero-shot" else {}
    [found] = parse(block(strategy, **clip)).search

    assert set(found.vetted()) == {"backbone"}
    assert found.params_class().to_json()["strategy"] == strategy


def test_a_parameter_of_another_strategy_names_its_owners(block: Make, faults: Faults) -> None:
    found = faults(block("feature-extraction", unfreeze=2, hed_lr=1e-3))

    assert "feature-extraction has no such parameter" in found["search[0].unfreeze"]
    assert "It belongs to partial." in found["search[0].unfreeze"]
    assert "Did you mean 'head_lr'?" in found["search[0].hed_lr"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"accumulate": 64},
        {"accumulate": [1, 64]},
        {"accumulate": {"int": [1, 64]}},
        {"accumulate": 8, "batch_size": [4, 32]},
        {"stage_decay": 0.5, "thirds": [0.1, 0.2, 1]},
        {"stage_decay": [None, 0.5], "thirds": [0.1, 0.2, 1]},
        {"stage_decay": 0.5, "thirds": {"choice": [None, [1, 1, 1]]}},
        {"stage_decay": {"uniform": [0.1, 0.9]}, "thirds": [0.1, 0.2, 1]},
    ],
    ids=str,
)
def test_values_that_could_meet_and_must_not_are_refused(
    block: Make, faults: Faults, parameters: dict[str, Any]
) -> None:
    [(key, message)] = faults(block("full", **parameters)).items()

    assert key == "search[0]"
    assert "Use" in message


@pytest.mark.parametrize(
    "parameters",
    [
        {"accumulate": [1, 4], "batch_size": [4, 32]},
        {"stage_decay": [None, 0.5]},
        {"stage_decay": 0.5, "thirds": None},
        {"thirds": [0.1, 0.2, 1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("strategy", ["partial", "full"])
def test_values_that_can_meet_are_taken(
    block: Make, parse: Parse, strategy: str, parameters: dict[str, Any]
) -> None:
    assert parse(block(strategy, **parameters)).search[0].vetted().keys() >= parameters.keys()


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"lora_rank": 8}, "lora_rank 8 is for adapter: lora. Leave it out"),
        ({"adapter": ["none", "lora"], "lora_alpha": {"int": [4, 8]}}, "a block of its own"),
        ({"adapter": "lora", "batch_norm": ["frozen", "adapt"]}, "Use frozen"),
    ],
    ids=str,
)
def test_what_adapters_have_needs_adapters_in_every_trial(
    block: Make, faults: Faults, parameters: dict[str, Any], told: str
) -> None:
    [(key, message)] = faults(block("partial", backbone=VIT, **parameters)).items()

    assert key == "search[0]"
    assert told in message


@pytest.mark.parametrize("backbone", ["resnet18", "torchvision/vit_b_16", [VIT, "resnet18"]])
def test_adapters_need_attention(block: Make, faults: Faults, backbone: Any) -> None:
    found = faults(block("partial", backbone=backbone, adapter=["none", "lora"]))

    assert list(found) == ["search[0].adapter"]
    lacking = "vit_b_16" if "vit_b_16" in backbone else "resnet18"
    assert f"{lacking} does not have. Use a vision transformer" in found["search[0].adapter"]


def test_a_block_of_adapters_has_their_defaults_and_one_that_searches_them_partials(
    block: Make, parse: Parse
) -> None:
    rates = {"backbone_lr": {"log": [1e-6, 1e-2]}, "lora_rank": [4, 8, 16]}
    [lora] = parse(block("partial", backbone=VIT, adapter="lora", **rates)).search
    assert (lora.vetted()["backbone_lr"], lora.vetted()["lora_rank"]) == (4e-4, 8)
    assert lora.defaults()["head_lr"] == 4e-4

    [both] = parse(block("partial", backbone=VIT, adapter=["none", "lora"])).search
    assert both.vetted()["adapter"] == "none"
    assert both.defaults()["backbone_lr"] == 1e-4


def test_a_rate_that_is_usual_for_adapters_is_no_note(block: Make, parse: Parse) -> None:
    rate = {"backbone": VIT, "backbone_lr": 4e-4}

    assert notes_on(parse(block("partial", adapter="lora", **rate))) == []
    [note] = notes_on(parse(block("partial", **rate)))
    assert "search[0].backbone_lr: 0.0004 lies outside" in note


@pytest.mark.parametrize(
    ("backbone", "key", "told"),
    [
        (None, "backbone", "missing. Name one or more"),
        ([], "backbone", "Name at least one"),
        (5, "backbone", "5 is no backbone"),
        ([["resnet18"]], "backbone[0]", "is no backbone"),
        ("resnet81", "backbone", "no backbone 'resnet81'. Did you mean 'resnet"),
        (["resnet18", "x"], "backbone[1]", "`orchestrator backbones` lists them"),
        (["resnet18", "resnet18"], "backbone", "appears twice"),
        (["resnet18", RESNET], "backbone", "appears twice"),
        ({"choice": ["resnet18", RESNET]}, "backbone", "appears twice"),
        ({"nam": "resnet18", "name": "resnet18"}, "backbone.nam", "Did you mean 'name'?"),
        ({"weights": "none"}, "backbone.name", "missing"),
        ({"name": "resnet18", "weights": 3}, "backbone.weights", "must be a valid string"),
        ({"name": "resnet18", "weights": "w.pt"}, "backbone.weights", "w.pt'. Allowed: default"),
        ({"name": "resnet18", "weights": "w" * 400}, "backbone.weights", "Allowed: default"),
        ({"name": "resnet18", "weights": ""}, "backbone.weights", "Allowed: default"),
        ({"name": "resnet18", "weights": "~none-such/w"}, "backbone.weights", "is no path"),
    ],
)
def test_a_backbone_that_cannot_be_is_told(
    block: Make, faults: Faults, backbone: Any, key: str, told: str
) -> None:
    [(found, message)] = faults(block(backbone=backbone)).items()

    assert found == f"search[0].{key}"
    assert told in message


def test_weights_are_a_file_beside_the_spec_or_a_name(
    block: Make, parse: Parse, tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "w.safetensors"
    file.touch()
    written = ["weights/w.safetensors", str(file), "hub:owner/name", "default", "none"]
    found = [
        parse(block(backbone={"name": "resnet18", "weights": weights}))
        .search[0]
        .vetted()["backbone"]["weights"]
        for weights in written
    ]

    assert found == [str(file.resolve())] * 2 + written[2:]


def test_scratch_starts_from_random_weights(
    block: Make, parse: Parse, faults: Faults, tmp_path: Path
) -> None:
    (tmp_path / "w.pt").touch()
    spec = parse(block("scratch"))

    assert spec.search[0].vetted()["backbone"] == {"name": "resnet18", "weights": "none"}
    for weights in ("w.pt", "hub:a/b"):
        told = faults(block("scratch", backbone={"name": "resnet18", "weights": weights}))
        assert told == {"search[0].backbone": f"scratch starts from weights: none, not {weights!r}"}


def test_a_default_sets_the_blocks_that_have_it_and_own_values_win(raw: Make, parse: Parse) -> None:
    search = [
        {"strategy": "feature-extraction", "backbone": "resnet18", "epochs": 4},
        {"strategy": "partial", "backbone": "resnet18"},
    ]
    one, two = parse(raw(search=search, defaults={"epochs": 3, "unfreeze": [1, 2]})).search

    assert one.dimensions.keys() == {"backbone", "epochs"}
    assert one.vetted()["epochs"] == 4
    assert two.dimensions["epochs"] == Constant(value=3)
    assert two.dimensions["unfreeze"] == Choice(values=(1, 2))
