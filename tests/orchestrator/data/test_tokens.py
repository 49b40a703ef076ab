from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.data.examples import Example, Examples
from orchestrator.data.inputs import iterate_inputs, training_batches
from orchestrator.data.texts import text_hash
from orchestrator.data.tokens import Frame, TokenRows, TokenTable, ensure_tokens, window
from orchestrator.spec.parts import TextContract
from orchestrator.spec.text_encoders import tokenizer_digest
from tests.orchestrator.text_material import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
DIGEST = tokenizer_digest(TOKENIZER)
CONTRACT = TextContract(size=10, tokenizer=DIGEST, pad=0)


def examples_of(folder: Path, texts: list[str]) -> Examples:
    rows = []
    for i, text in enumerate(texts):
        path = folder / f"{i}.txt"
        path.write_text(text)
        rows.append(Example(str(path), text_hash(text), "train", ("ab"[i % 2],)))
    return Examples.write(folder / "index", rows, labels=["a", "b"], multilabel=False)


def tokens_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def test_a_text_is_framed_as_its_tokenizer_frames_it() -> None:
    frame = Frame.of(TOKENIZER)
    assert (frame.before, frame.after) == ((2,), (3,))
    texts = ["cat dog", "one two three four"]
    rows = frame.rows([np.array(tokens_of(t), np.int32) for t in texts], CONTRACT, np.zeros(2, int))
    for ids, length, text in zip(rows.ids, rows.lengths, texts, strict=True):
        assert ids[:length].tolist() == TOKENIZER.encode(text).ids
        assert not ids[length:].any()
    assert rows.ids.shape == (2, 6)


def test_views_are_windows_that_cover_a_text() -> None:
    text = np.arange(20, dtype=np.int32)
    shown = [window(text, view, 8) for view in range(4)]
    assert [(w[0], w[-1]) for w in shown] == [(0, 7), (8, 15), (12, 19), (0, 7)]
    assert window(text[:5], 3, 8).tolist() == [0, 1, 2, 3, 4]


def test_a_data_set_is_tokenized_once_and_read_back(tmp_path: Path) -> None:
    texts = [f"cat {'dog ' * (i % 7)}{i}" for i in range(1100)]
    examples = examples_of(tmp_path, texts)
    told: list[tuple[int, int]] = []
    table = ensure_tokens(examples, TOKENIZER, DIGEST, progress=lambda *n: told.append(n))
    assert told == [(512, 1100), (1024, 1100), (1100, 1100)]
    ensure_tokens(examples, TOKENIZER, DIGEST, progress=lambda *n: pytest.fail("tokenized twice"))

    assert len(table) == 1100
    for row in (0, 511, 512, 1099):
        assert table[row].tolist() == tokens_of(examples.text(row))
    assert table.lengths().tolist() == [len(table[row]) for row in range(1100)]


def test_a_document_of_ten_megabytes_is_cut(tmp_path: Path) -> None:
    examples = examples_of(tmp_path, ["cat dog " * 1_300_000, "bird"])
    table = ensure_tokens(examples, TOKENIZER, DIGEST)
    assert int(table.lengths().max()) == 2_600_000
    rows = table.rows(np.arange(2), CONTRACT, np.zeros(2, int))
    assert sorted(rows.lengths.tolist()) == [3, 10]


def test_batches_hold_texts_of_like_length_and_each_text_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    examples = examples_of(tmp_path, [f"{'cat ' * rng.integers(1, 200)}{i}" for i in range(600)])
    lengths = ensure_tokens(examples, TOKENIZER, DIGEST).lengths()
    batches = training_batches(examples, contract=CONTRACT, batch_size=8, seed=1, epoch=1)
    again = training_batches(examples, contract=CONTRACT, batch_size=8, seed=1, epoch=1)
    other = training_batches(examples, contract=CONTRACT, batch_size=8, seed=1, epoch=2)

    assert sorted(np.concatenate(batches).tolist()) == list(range(600))
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]
    assert [b.tolist() for b in batches] != [b.tolist() for b in other]
    padding = sum(int((lengths[b].max() - lengths[b]).sum()) for b in batches)
    unsorted = sum(
        int((lengths[b].max() - lengths[b]).sum()) for b in np.split(rng.permutation(600), 75)
    )
    assert padding < unsorted / 10
    longest = [int(lengths[b].max()) for b in batches[:20]]
    assert longest != sorted(longest, reverse=True)


def test_few_texts_meet_others_in_every_epoch(tmp_path: Path) -> None:
    examples = examples_of(tmp_path, ["cat " * n for n in range(1, 65)])
    ensure_tokens(examples, TOKENIZER, DIGEST)
    pairs = []
    for epoch in (1, 2):
        batches = training_batches(examples, contract=CONTRACT, batch_size=8, seed=1, epoch=epoch)
        pairs.append({(a, b) for batch in batches for a in batch for b in batch if a < b})
    assert len(pairs[0] & pairs[1]) < len(pairs[0]) / 2  # sorted as one they would be all of them


def test_inputs_are_read_in_the_views_asked_for(tmp_path: Path) -> None:
    examples = examples_of(tmp_path, ["one two three four five six seven eight nine ten", "cat"])
    ensure_tokens(examples, TOKENIZER, DIGEST)
    long = next(i for i in range(2) if "ten" in examples.text(i))
    for view in (1, np.array([1, 1])):
        ((_, rows),) = iterate_inputs(
            examples, [np.array([long])], contract=CONTRACT, view=view, threads=1
        )
        assert isinstance(rows, TokenRows)
        assert TOKENIZER.decode(rows.ids[0].tolist()) == "three four five six seven eight nine ten"


def test_tokens_of_another_version_are_refused(tmp_path: Path) -> None:
    examples = examples_of(tmp_path, ["cat"])
    with pytest.raises(Exception, match="another version"):
        TokenTable(examples.folder / "index.arrow")
