"""Domain-adaptive blocks and specs of a pretraining alone: what they mean, and all their faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.parsing import notes_on, parse_sweep
from orchestrator.spec.pretraining import (
    CorpusSpec,
    MaskedLanguage,
    SimSiam,
    pretraining_digest,
)
from orchestrator.spec.pretraining_job import load_pretraining, parse_job
from orchestrator.spec.sweep import SweepSpec
from tests.orchestrator.text_material import write_encoder

Raw = dict[str, Any]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_encoder(tmp_path / "tiny")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_text("a")
    return tmp_path


@pytest.fixture
def sweep(base: Path) -> Callable[..., SweepSpec]:
    """A text sweep whose first block is domain-adaptive with these parameters."""

    def make(*others: Raw, **block: Any) -> SweepSpec:
        first = {"strategy": "domain-adaptive", "backbone": "tiny", "then": "full", **block}
        raw = {
            "name": "s",
            "task": "text-classification",
            "data": {"train": "t"},
            "search": [first, *others],
        }
        return parse_sweep(raw, base=base)

    return make


def faults(parse: Callable[[], object]) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse()
    return {fault.key: fault.message for fault in caught.value.faults}


def test_a_block_has_the_parameters_of_what_comes_then(sweep: Callable[..., SweepSpec]) -> None:
    spec = sweep(backbone_lr={"log": [1e-5, 1e-4]}, pretraining={"corpus": "raw", "epochs": 7})
    block = spec.search[0]
    assert (block.rung, block.then, set(block.searched)) == ("full", "full", {"backbone_lr"})
    assert isinstance(block.pretraining, MaskedLanguage)
    assert (block.pretraining.epochs, block.pretraining.lr) == (7, 5e-5)
    assert block.pretraining.corpus is not None
    assert Path(block.pretraining.corpus.files[0]).is_absolute()
    assert block.defaults()["epochs"] == 3


def test_its_default_has_a_twin_without_pretraining(sweep: Callable[..., SweepSpec]) -> None:
    ask = {"then": "partial", "unfreeze": [2, 1], "epochs": {"int": [50, 60]}}
    spec = sweep({"strategy": "scratch", "backbone": "tiny"}, **ask)
    first, scratch, twin = spec.search
    assert (scratch.strategy, twin.strategy, twin.twin_of) == ("scratch", "partial", first.digest)
    assert not twin.searched
    assert twin.vetted() == first.vetted()
    assert [note.partition(":")[0] for note in notes_on(spec)] == ["search[0].epochs"]


def test_each_backbone_has_a_default_and_a_twin(base: Path) -> None:
    search = [
        {"strategy": "domain-adaptive", "backbone": ["resnet18", "resnet34"], "then": "partial"},
        {"strategy": "scratch", "backbone": "resnet18"},
    ]
    raw = {"name": "s", "task": "image-classification", "data": {"train": "t"}, "search": search}
    first, scratch, second, *twins = parse_sweep(raw, base=base).search
    names = [block.vetted()["backbone"]["name"] for block in (first, second, *twins)]
    assert names == ["resnet18", "resnet34"] * 2
    assert scratch.strategy == "scratch"
    assert [twin.twin_of for twin in twins] == [first.digest, second.digest]
    few = parse_sweep(raw | {"budget": {"trials": 4}}, base=base)
    assert any("are fewer than the search has blocks (5" in note for note in notes_on(few))


def test_without_a_section_it_learns_from_the_training_examples(
    sweep: Callable[..., SweepSpec],
) -> None:
    pretraining = sweep().search[0].pretraining
    assert isinstance(pretraining, MaskedLanguage)
    assert pretraining.corpus is None


def test_images_are_pretrained_by_simsiam(base: Path) -> None:
    block = {"strategy": "domain-adaptive", "backbone": ["resnet18"], "then": "partial"}
    raw = {"name": "s", "task": "image-classification", "data": {"train": "t"}, "search": [block]}
    assert isinstance(parse_sweep(raw, base=base).search[0].pretraining, SimSiam)
    block["backbone"] = ["resnet50_fpn"]
    assert (
        "Pretrain its trunk, resnet50"
        in faults(lambda: parse_sweep(raw, base=base))["search[0].pretraining"]
    )


@pytest.mark.parametrize(
    ("block", "key", "told"),
    [
        ({"then": "half"}, "then", "'half' is not one of partial, full"),
        ({"then": None}, "then", "missing. Say how the adapted backbone is fine-tuned"),
        ({"unfreeze": 2}, "unfreeze", "belongs to partial"),
        ({"pretraining": 3}, "pretraining", "3 is no section"),
        ({"pretraining": {"epohs": 3}}, "pretraining.epohs", "Did you mean 'epochs'?"),
        ({"pretraining": {"lr": "high"}}, "pretraining.lr", "'high' must be a valid number"),
        ({"pretraining": {"lr": [1e-4]}}, "pretraining.lr", "must be a valid number"),
        ({"pretraining": {"max_length": 65}}, "pretraining.max_length", "64 tokens that tiny"),
        ({"pretraining": {"corpus": "raw/*.md"}}, "pretraining.corpus", "matches no file"),
        ({"pretraining": {"corpus": []}}, "pretraining.corpus.files", "at least 1 item"),
        (
            {"pretraining": {"corpus": {"files": "raw", "colum": "x"}}},
            "pretraining.corpus.colum",
            "Did you mean 'column'?",
        ),
        (
            {"pretraining": {"batch_size": 2, "accumulate": 4}},
            "pretraining",
            "accumulate 4 is more than batch_size 2",
        ),
    ],
)
def test_a_fault_names_the_key(
    sweep: Callable[..., SweepSpec], block: Raw, key: str, told: str
) -> None:
    found = faults(lambda: sweep(**block))
    assert told in found[f"search[0].{key}"]


def test_faults_come_all_at_once(sweep: Callable[..., SweepSpec]) -> None:
    section = {"corpus": "none.txt", "epochs": 0, "seeds": 1}
    found = faults(lambda: sweep(pretraining=section, head_lr=-1))
    keys = ("pretraining.corpus", "pretraining.epochs", "pretraining.seeds", "head_lr")
    assert set(found) == {f"search[0].{key}" for key in keys}


def test_a_tokenizer_without_a_mask_token_cannot_be_pretrained(
    sweep: Callable[..., SweepSpec], base: Path
) -> None:
    path = base / "tiny" / "tokenizer.json"
    path.write_text(path.read_text().replace("[MASK]", "[HIDE]"))
    assert "no mask token" in faults(sweep)["search[0].pretraining"]
    (base / "tiny" / "special_tokens_map.json").write_text('{"mask_token": "[HIDE]"}')
    assert sweep().search[0].pretraining is not None


def test_the_digest_is_of_contents_and_settings_not_of_places() -> None:
    def digest(pretraining: MaskedLanguage, corpus: str = "c", tokenizer: str | None = "t") -> str:
        return pretraining_digest(
            pretraining,
            backbone="b",
            weights_digest="w",
            tokenizer=tokenizer,
            corpus_digest=corpus,
        )

    here, there = (
        MaskedLanguage(corpus=CorpusSpec(files=(place,))) for place in ("/here", "/there")
    )
    assert digest(here) == digest(there) == digest(MaskedLanguage())
    assert digest(here) != digest(here.model_copy(update={"lr": 1e-4}))
    assert digest(here) != digest(here, corpus="other")
    assert digest(here) != digest(here, tokenizer="another")


def test_a_sweeps_identity_has_the_corpus_by_content(sweep: Callable[..., SweepSpec]) -> None:
    spec = sweep(pretraining={"corpus": "raw"})
    pretraining = spec.search[0].pretraining
    assert pretraining is not None
    assert pretraining.corpus is not None
    moved_corpus = CorpusSpec(files=("/elsewhere",))
    moved = spec.search[0].model_copy(
        update={"pretraining": pretraining.model_copy(update={"corpus": moved_corpus})}
    )
    elsewhere = spec.model_copy(update={"search": (moved, *spec.search[1:])})
    one = spec.identity("d", {pretraining.corpus: "c"})
    assert one == elsewhere.identity("d", {moved_corpus: "c"})
    assert one != spec.identity("d", {pretraining.corpus: "other"})


def test_a_pretraining_alone_names_backbone_and_corpus(base: Path) -> None:
    job = parse_job({"pretraining": {"backbone": ["tiny"], "corpus": "raw"}}, base=base)
    assert [backbone.name for backbone in job.backbones] == ["tiny"]
    assert isinstance(job.pretraining, MaskedLanguage)
    assert job.storage == str(base / "runs")
    image = parse_job({"pretraining": {"backbone": "resnet18", "corpus": "raw"}}, base=base)
    assert isinstance(image.pretraining, SimSiam)


def test_all_faults_of_a_pretraining_alone(base: Path) -> None:
    raw = {"pretraining": {"backbone": "resnet18", "epochs": 0}, "storag": 1, "workers": {"cpu": 1}}
    found = faults(lambda: parse_job(raw, base=base))
    assert set(found) == {"pretraining.corpus", "pretraining.epochs", "storag", "workers.cpu"}
    assert "nothing to pretrain" in faults(lambda: parse_job({}, base=base))[""]


def test_a_sweep_without_a_domain_adaptive_block_has_nothing_to_pretrain(base: Path) -> None:
    text = """
name: s
task: text-classification
data: {train: t}
search:
  - {strategy: full, backbone: tiny}
"""
    (base / "s.yaml").write_text(text)
    assert "nothing to pretrain" in faults(lambda: load_pretraining(base / "s.yaml"))["search"]
    over = ["search.0.strategy=domain-adaptive", "search.0.then=full"]
    assert isinstance(load_pretraining(base / "s.yaml", over), SweepSpec)
