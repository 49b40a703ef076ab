"""What a search block says of texts: zero-shot, heads that start from them, WiSE-FT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.search_space import Choice, Constant
from orchestrator.spec.strategy import ZeroShot
from orchestrator.spec.sweep import SweepSpec
from orchestrator.tuning.experiments import ExperimentFactory, backbones_of

CLIP = "clip:ViT-B-32/laion2b_s34b_b79k"
Make = Callable[..., dict[str, Any]]
Parse = Callable[[Any], SweepSpec]
Faults = Callable[[Any], dict[str, str]]


def test_a_clip_is_a_backbone_of_every_strategy(raw: Make, parse: Parse) -> None:
    names = ("zero-shot", "feature-extraction", "partial", "full", "scratch")
    spec = parse(raw(search=[{"strategy": name, "backbone": CLIP} for name in names]))
    weights = [block.dimensions["backbone"].extremes[0]["weights"] for block in spec.search]
    assert weights == [*["default"] * 4, "none"]


def test_a_folder_is_found_beside_the_spec(raw: Make, parse: Parse, clip_folder: Path) -> None:
    for written in (str(clip_folder), f"clip:{clip_folder}", {"name": str(clip_folder)}):
        spec = parse(raw(search=[{"strategy": "partial", "unfreeze": 2, "backbone": written}]))
        (backbone,) = backbones_of(spec)
        assert (backbone.name, backbone.folder) == ("clip:coloured-shapes", str(clip_folder))


def test_stages_are_the_towers_blocks(raw: Make, faults: Faults, clip_folder: Path) -> None:
    told = faults(
        raw(search=[{"strategy": "partial", "unfreeze": 3, "backbone": str(clip_folder)}])
    )
    assert "all that clip:coloured-shapes has (3 stages)" in told["search[0].unfreeze"]


@pytest.mark.parametrize(
    ("written", "dimension"),
    [
        ("plain", Constant(value="plain")),
        (["a {}", "the {}."], Constant(value=["a {}", "the {}."])),
        ({"choice": ["plain", "default"]}, Choice(values=("plain", "default"))),
        ([["a {}"], ["the {}."]], Choice(values=(["a {}"], ["the {}."]))),
    ],
)
def test_templates_are_a_set_a_list_or_a_choice_of_either(
    raw: Make, parse: Parse, written: Any, dimension: Any
) -> None:
    spec = parse(raw(search=[{"strategy": "zero-shot", "backbone": CLIP, "templates": written}]))
    assert spec.search[0].dimensions["templates"] == dimension


def test_descriptions_are_written_out_or_read_from_a_labels_file(
    raw: Make, parse: Parse, tmp_path: Path
) -> None:
    (tmp_path / "labels.yaml").write_text("labels: {cat: a tabby, dog: [a hound, a pup]}\n")
    inline = {"cat": "a tabby", "dog": ["a hound", "a pup"]}
    found = []
    for written in ("labels.yaml", inline):
        block = {"strategy": "zero-shot", "backbone": CLIP, "descriptions": written}
        spec = parse(raw(search=[block]))
        (backbone,) = backbones_of(spec)
        factory = ExperimentFactory(
            task=spec_task(("cat", "dog")),
            data_digest="d",
            objective=spec.objective,
            weights_digests={backbone: "w"},
        )
        found.append(factory.make(spec.search[0], spec.search[0].vetted()))
    assert isinstance(found[0].strategy, ZeroShot)
    assert found[0].strategy.descriptions == {"cat": ("a tabby",), "dog": ("a hound", "a pup")}
    assert found[0].digest == found[1].digest


def test_zero_shot_has_few_parameters_and_defaults_of_others_are_not_its(
    raw: Make, parse: Parse, faults: Faults
) -> None:
    block = {"strategy": "zero-shot", "backbone": CLIP}
    spec = parse(raw(search=[block], defaults={"epochs": 3, "batch_size": 8}))
    assert set(spec.search[0].dimensions) == {"backbone"}
    told = faults(raw(search=[{**block, "epochs": 3}]))
    assert "zero-shot has no such parameter" in told["search[0].epochs"]


@pytest.mark.parametrize(
    ("block", "key", "said"),
    [
        ({"strategy": "zero-shot", "backbone": "resnet18"}, "backbone", "zero-shot needs a CLIP"),
        (
            {"backbone": ["resnet18", CLIP], "head": ["linear", "text"]},
            "backbone",
            "resnet18 is not",
        ),
        ({"backbone": {"name": CLIP, "weights": "none"}, "head": "text"}, "backbone", "no text"),
        ({"head": "text", "pooling": "multi-scale"}, "", "head: text reads pooling: last"),
        (
            {"head": "text", "pooling": ["last", "multi-scale"]},
            "",
            "head: text reads pooling: last",
        ),
        ({"strategy": "full", "wise_ft": True}, "", "Use head: text"),
        ({"wise_ft": True}, "wise_ft", "It belongs to partial, full"),
        ({"head": "text", "templates": ["plain", "default"]}, "templates", "is a set of templates"),
        ({"head": "text", "templates": []}, "templates", "no templates. Give at least one"),
        ({"head": "text", "templates": "a photo"}, "templates", "default"),
        ({"head": "text", "descriptions": "none.yaml"}, "descriptions", "cannot be read"),
        ({"head": "text", "descriptions": {"cat": 3}}, "descriptions", "cat"),
        ({"backbone": "clip:ViT-B-23/openai"}, "backbone", "Did you mean 'ViT-B-32"),
    ],
)
def test_what_texts_cannot_be_is_refused(
    raw: Make, faults: Faults, block: dict[str, Any], key: str, said: str
) -> None:
    written = {"strategy": "feature-extraction", "backbone": CLIP, **block}
    told = faults(raw(search=[written]))
    place = f"search[0].{key}" if key else "search[0]"
    assert said in told[place], told


def test_texts_say_one_label_an_image(raw: Make, faults: Faults) -> None:
    blocks = [
        {"strategy": "zero-shot", "backbone": CLIP},
        {"strategy": "full", "backbone": CLIP, "head": "text"},
    ]
    told = faults(raw(search=blocks, task="image-multilabel-classification"))
    assert set(told) == {"search[0].strategy", "search[1].head"}


def test_the_zero_shot_task_trains_nothing(raw: Make, parse: Parse, faults: Faults) -> None:
    task = "zero-shot-image-classification"
    zero_shot = {"strategy": "zero-shot", "backbone": CLIP}
    assert parse(raw(task=task, search=[zero_shot])).task == task
    told = faults(raw(task=task, search=[zero_shot, {"strategy": "full", "backbone": CLIP}]))
    assert "use task: image-classification" in told["search[1].strategy"].replace(" or ", " use ")


def spec_task(labels: tuple[str, ...]) -> Any:
    from orchestrator.spec.parts import TaskSpec

    return TaskSpec(kind="image-classification", labels=labels)
