from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from orchestrator.errors import SpecError, WeightsError
from orchestrator.spec.backbones import backbone_modality, facts_of
from orchestrator.spec.parsing import notes_on, parse_sweep
from orchestrator.spec.parts import BackboneSpec, TextContract
from orchestrator.spec.text_encoders import encoder_tokenizer, longest_input, tokenizer_digest
from tests.orchestrator.text_material import WORDS, tiny_tokenizer, write_encoder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "tiny")


def spec_of(folder: Path) -> BackboneSpec:
    return BackboneSpec(name=folder.name, folder=str(folder))


def raw(tmp_path: Path, **block: object) -> dict[str, object]:
    return {
        "name": "texts",
        "task": "text-classification",
        "data": {"train": "train"},
        "search": [{"strategy": "partial", "backbone": "tiny", "unfreeze": 1, **block}],
    }


def test_the_facts_are_those_of_the_files(encoder: Path) -> None:
    facts = facts_of(spec_of(encoder))

    assert (facts.n_stages, facts.feature_width, facts.multi_scale_width) == (3, 32, 192)
    assert isinstance(facts.input, TextContract)
    assert (facts.input.size, facts.input.pad) == (64, 0)
    assert facts.input.tokenizer == tokenizer_digest(encoder_tokenizer(spec_of(encoder)))
    assert abs(facts.n_parameters / 38_000 - 1) < 0.2
    assert backbone_modality(spec_of(encoder)) == "text"
    assert backbone_modality(BackboneSpec(name="resnet18")) == "image"


def test_positions_are_counted_from_behind_the_padding_where_a_family_does_so() -> None:
    config = {"max_position_embeddings": 514, "pad_token_id": 1}
    assert longest_input({**config, "model_type": "roberta"}) == 512
    assert longest_input({**config, "model_type": "bert"}) == 514


def test_the_tokenizers_digest_leaves_truncation_and_padding_out(encoder: Path) -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer_digest(tokenizer)
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    assert tokenizer_digest(tokenizer) == before
    assert tokenizer_digest(tiny_tokenizer(extra=1)) != before


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: tiny_tokenizer(extra=9).save(str(f / "tokenizer.json")), "do not belong"),
        (lambda f: edit(f, vocab_size=5_000), "its weights 5,000"),
        (lambda f: edit(f, pad_token_id=9), "no special token"),
        (lambda f: edit(f, model_type="gpt2"), "model_type 'gpt2'.*is not one of"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "no readable tokenizer"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    encoder: Path, damage: object, reason: str
) -> None:
    damage(encoder)  # type: ignore[operator]
    with pytest.raises(WeightsError, match=reason):
        facts_of(spec_of(encoder))


def test_a_matrix_may_have_rows_that_no_token_uses(encoder: Path) -> None:
    """Such as the thousand of dbmdz's Italian BERT."""
    edit(encoder, vocab_size=encoder_tokenizer(spec_of(encoder)).get_vocab_size() + 1000)
    assert facts_of(spec_of(encoder)).n_stages == 3


ROLES = {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}, "mask_token": "[MASK]"}


@pytest.mark.parametrize("name", ["special_tokens_map.json", "tokenizer_config.json"])
def test_special_tokens_that_config_and_tokenizer_place_apart_are_refused(
    encoder: Path, name: str
) -> None:
    (encoder / name).write_text(json.dumps(ROLES))
    edit(encoder, cls_token_id=2, sep_token_id=4, mask_token_id=103)
    told = (
        r"tiny: its config.json and its tokenizer differ in the sep token "
        r"\(4, and \[SEP\] with 3\), the mask token \(103, and \[MASK\] with 4\)\. "
        "They do not belong together"
    )
    with pytest.raises(WeightsError, match=told):
        facts_of(spec_of(encoder))


@pytest.mark.parametrize(
    ("roles", "config"),
    [
        (ROLES, {"cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4}),
        # What one of the two leaves open: BERT's own has no such ids, older files had some for all.
        (ROLES, {"bos_token_id": 0, "eos_token_id": 0}),
        ({}, {"cls_token_id": 101, "sep_token_id": 102}),
        (ROLES, {"cls_token_id": None, "eos_token_id": [3, 4]}),
        ({"bos_token": "<s>", "eos_token": None}, {"bos_token_id": 0, "eos_token_id": 2}),
    ],
)
def test_special_tokens_that_one_of_the_two_does_not_place_are_not_compared(
    encoder: Path, roles: dict[str, object], config: dict[str, object]
) -> None:
    (encoder / "special_tokens_map.json").write_text(json.dumps(roles))
    edit(encoder, **config)
    assert facts_of(spec_of(encoder)).n_stages == 3


def test_a_tokenizer_that_loses_the_text_is_refused(encoder: Path) -> None:
    content = json.loads((encoder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    for letter in "aeiou":  # words with these cannot be spelt any more
        vocabulary[f"~{letter}"] = vocabulary.pop(letter)
        vocabulary[f"~~{letter}"] = vocabulary.pop(f"##{letter}")
    (encoder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="its tokenizer turns"):
        facts_of(spec_of(encoder))


def test_a_tokenizer_that_comes_as_a_sentencepiece_model_alone_is_read(tmp_path: Path) -> None:
    """As DeBERTa-v3's repositories have it."""
    words = [word for kind in WORDS.values() for word in kind]
    text = tmp_path / "words.txt"
    text.write_text("\n".join(f"the {a} was {b} on the second day" for a in words for b in words))
    folder = tmp_path / "deberta"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spm"), vocab_size=80, hard_vocab_limit=False,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2,
        pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]",
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"vocab_type": "spm"}))

    tokenizer = encoder_tokenizer(spec_of(folder))

    told = tokenizer.encode("the cat was red")
    assert (told.tokens[0], told.tokens[-1]) == ("[CLS]", "[SEP]")
    assert tokenizer.decode(told.ids) == "the cat was red"


def test_a_text_spec_has_the_vetted_defaults_of_texts(encoder: Path, tmp_path: Path) -> None:
    spec = parse_sweep(raw(tmp_path, backbone_lr={"log": [1e-5, 1e-4]}), base=tmp_path)

    (block,) = spec.search
    assert block.vetted()["backbone"] == {
        "name": "tiny",
        "weights": "default",
        "folder": str(encoder),
    }
    assert block.vetted()["backbone_lr"] == pytest.approx(2e-5)
    assert block.defaults() | {"epochs": 3, "clip_norm": 1.0, "pooling": "mean"} == block.defaults()
    assert notes_on(spec)[0].startswith("search[0].backbone_lr: 1e-05, 0.0001 lies outside")


def test_text_and_image_parameters_do_not_mix(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        parse_sweep(raw(tmp_path, augment="light", image_size=64), base=tmp_path)
    told = str(caught.value)
    for name in ("augment", "image_size"):
        reason = f"{name} is for image tasks, and this one is for texts. Leave it out"
        assert f"search[0].{name}: {reason}" in told
    with pytest.raises(SpecError, match=r"defaults\.augment: augment is for image tasks, and"):
        parse_sweep({**raw(tmp_path), "defaults": {"augment": "light"}}, base=tmp_path)

    images = {**raw(tmp_path, max_length=64), "task": "image-classification"}
    with pytest.raises(SpecError, match="max_length is for text tasks"):
        parse_sweep(images, base=tmp_path)


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ("resnet18", "is for images"),
        ({"name": "tiny", "weights": "w.pt"}, "Name a folder to use its weights"),
        ("./nowhere", "no encoder './nowhere'"),
        ({"name": "x", "folder": "nowhere"}, "no encoder 'nowhere'"),
    ],
)
def test_what_is_no_encoder_is_refused(
    encoder: Path, tmp_path: Path, backbone: object, reason: str
) -> None:
    with pytest.raises(SpecError, match=reason):
        parse_sweep(raw(tmp_path, backbone=backbone), base=tmp_path)


def test_unfreezing_more_than_there_are_layers_is_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"unfreeze: 3 is all that tiny has \(3 stages\)"):
        parse_sweep(raw(tmp_path, unfreeze=3), base=tmp_path)


def test_a_folder_can_be_given_another_name(encoder: Path, tmp_path: Path) -> None:
    spec = parse_sweep(raw(tmp_path, backbone={"name": "mine", "folder": "tiny"}), base=tmp_path)
    found = spec.search[0].vetted()["backbone"]
    assert (found["name"], found["folder"]) == ("mine", str(encoder))


def test_texts_longer_than_the_positions_are_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="65 is more than the 64 tokens that tiny takes"):
        parse_sweep(raw(tmp_path, max_length=[32, 65]), base=tmp_path)


def test_no_torch_is_needed_to_parse(encoder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from orchestrator.spec.parsing import parse_sweep;"
        f"parse_sweep({raw(tmp_path)!r}, base=Path({str(tmp_path)!r}));"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
