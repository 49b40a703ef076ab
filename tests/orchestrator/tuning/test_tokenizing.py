"""What is too long to be read at once is counted, and what becomes of it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.data.examples import Examples
from orchestrator.data.preparing import prepare_data
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.data import DataSpec
from orchestrator.spec.parsing import parse_sweep
from orchestrator.spec.parts import BackboneSpec, TaskKind, TextContract
from orchestrator.spec.text_encoders import encoder_tokenizer
from orchestrator.tuning.progress import Silent
from orchestrator.tuning.tokenizing import TextReading, long_texts, readings_of, tokenize
from tests.orchestrator.text_material import write_encoder, write_texts


@pytest.fixture
def encoder(tmp_path: Path) -> BackboneSpec:
    return BackboneSpec(name="tiny", folder=str(write_encoder(tmp_path / "tiny")))


def prepared(location: Path, task: TaskKind, encoder: BackboneSpec) -> Examples:
    cache = location.parent / "cache"
    found = prepare_data(DataSpec(train=str(location)), task=task, seed=0, cache=cache).examples
    tokenize(found, [encoder], Silent())
    return found


def contract(encoder: BackboneSpec, size: int, overlap: int | None = None) -> TextContract:
    found = facts_of(encoder).input
    assert isinstance(found, TextContract)
    return found.model_copy(update={"size": size, "overlap": overlap})


@pytest.mark.parametrize("n_windows", [1, 2])
def test_texts_that_are_cut_off_are_counted_the_longest_first(
    encoder: BackboneSpec, tmp_path: Path, n_windows: int
) -> None:
    root = write_texts(tmp_path / "train", 10, seed=0)
    examples = prepared(root, "text-classification", encoder)
    tokenizer = encoder_tokenizer(encoder)
    lengths = {
        str(path): len(tokenizer.encode(path.read_text()).ids) - 2 for path in root.rglob("*.txt")
    }
    long = {uri: n for uri, n in lengths.items() if n > 30 * n_windows}
    assert 0 < len(long) < len(lengths)
    reading = TextReading("tiny", contract(encoder, 32), n_windows)
    (found,) = long_texts(examples, [reading, reading])
    assert (found.kind, found.severity, found.count) == ("long-texts", "note", len(long))
    assert found.message.startswith(
        f"{len(long)} of 30 texts have more tokens than the {30 * n_windows} that tiny reads"
    )
    told = "one window" if n_windows == 1 else "2 windows"
    assert f"({told} of max_length 32): the rest of them is cut off" in found.message
    assert [long[uri] for uri in found.items] == sorted(long.values(), reverse=True)[:20]
    roomy = TextReading("tiny", contract(encoder, max(lengths.values()) + 2))
    assert long_texts(examples, [roomy]) == []


def test_tagged_texts_are_read_in_windows_and_nothing_is_cut_off(
    encoder: BackboneSpec, tmp_path: Path
) -> None:
    sentences = [["cat"] * n for n in (5, 14, 15, 40)]
    text = "\n\n".join("\n".join(f"{word} B-ANIMAL" for word in s) for s in sentences)
    (tmp_path / "names.conll").write_text(text + "\n")
    examples = prepared(tmp_path / "names.conll", "token-classification", encoder)
    (found,) = long_texts(examples, [TextReading("tiny", contract(encoder, 16, 4))])
    # 16 tokens are 14 without the special ones; 15 take two windows, 40 four of them.
    assert found.count == 2
    assert "2 of 4 texts are longer than max_length 16 of tiny" in found.message
    assert "read in 6 windows, nothing is cut off" in found.message
    assert long_texts(examples, [TextReading("tiny", contract(encoder, 64, 4))]) == []


def test_questions_that_are_cut_are_counted_apart_from_long_contexts(
    encoder: BackboneSpec, tmp_path: Path
) -> None:
    answer = [{"text": "cat", "answer_start": 4}]
    asked = [
        ("the cat is red " * 10, ["is it?", "is it " * 20]),
        ("one cat is red", ["was it?"]),
        ("two cat was red", ["it is?"]),
    ]
    paragraphs = [
        {
            "context": context,
            "qas": [
                {"id": f"{context[:4]}{n}", "question": question, "answers": answer}
                for n, question in enumerate(questions)
            ],
        }
        for context, questions in asked
    ]
    (tmp_path / "asked.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    examples = prepared(tmp_path / "asked.json", "question-answering", encoder)
    long, cut = long_texts(examples, [TextReading("tiny", contract(encoder, 32, 8))])
    assert (long.count, cut.count) == (2, 1)
    assert "2 of 4 texts are longer than max_length 32 of tiny: they are read in" in long.message
    assert "1 of 4 questions are longer than half of max_length 32 of tiny" in cut.message


def test_every_way_of_reading_of_a_search_is_asked_once(
    encoder: BackboneSpec, tmp_path: Path
) -> None:
    block = {"strategy": "partial", "backbone": "tiny", "unfreeze": 1, "max_length": [16, 32]}
    raw = {
        "name": "texts",
        "task": "text-classification",
        "data": {"train": "train"},
        "search": [{**block, "predict_views": [1, 4]}, {**block, "strategy": "full"}],
    }
    raw["search"][1].pop("unfreeze")  # type: ignore[index, union-attr]
    found = readings_of(parse_sweep(raw, base=tmp_path))
    assert [(r.contract.size, r.n_windows) for r in found] == [(16, 1), (16, 4), (32, 1), (32, 4)]
    raw["task"] = "token-classification"
    raw["search"] = [{**block, "overlap": 4}]
    found = readings_of(parse_sweep(raw, base=tmp_path))
    assert [(r.contract.size, r.contract.overlap) for r in found] == [(16, 4), (32, 4)]
