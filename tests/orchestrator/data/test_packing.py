"""Packed rows: all tokens in order, separated, and the mask that a row and an epoch decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from orchestrator.data.corpus import read_corpus
from orchestrator.data.examples import Examples
from orchestrator.data.masking import Masking
from orchestrator.data.packing import PackedRows, pack
from orchestrator.data.tokens import TokenTable, ensure_tokens
from orchestrator.spec.pretraining import CorpusSpec
from orchestrator.spec.text_encoders import tokenizer_digest
from tests.orchestrator.text_material import SPECIAL, tiny_tokenizer, write_phrases

SIZE = 16
CLS, SEP, MASK, PAD = (SPECIAL.index(name) for name in ("[CLS]", "[SEP]", "[MASK]", "[PAD]"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    root = tmp_path_factory.mktemp("corpus")
    spec = CorpusSpec(files=(str(write_phrases(root / "texts", 30, seed=0)),))
    found = read_corpus(spec, modality="text", fraction=0.2, seed=0, cache=root / "cache")
    return found.examples


@pytest.fixture(scope="module")
def table(examples: Examples, tokenizer: Tokenizer) -> TokenTable:
    return ensure_tokens(examples, tokenizer, tokenizer_digest(tokenizer))


@pytest.fixture
def rows(examples: Examples, table: TokenTable, tmp_path: Path) -> PackedRows:
    texts = examples.indices("train")
    return pack(table, texts, size=SIZE, pad=PAD, folder=tmp_path, name="rows")


def test_rows_hold_every_token_once_with_a_separator_after_each_text(
    examples: Examples, table: TokenTable, rows: PackedRows
) -> None:
    texts = [table[int(i)].tolist() for i in examples.indices("train")]
    stream = [token for text in texts for token in [*text, SEP]]
    assert (rows.ids[:, 0] == CLS).all()
    assert (rows.ids[:-1, -1] == SEP).all()
    assert not (rows.ids[:-1] == PAD).any()
    last = rows.ids[-1][rows.ids[-1] != PAD]
    assert last[-1] == SEP
    packed = [*rows.ids[:-1, 1:-1].ravel().tolist(), *last[1:-1].tolist()]
    assert packed == stream
    assert rows.n_tokens == len(stream) + 2 * len(rows)


def test_packing_is_done_once(
    examples: Examples, table: TokenTable, rows: PackedRows, tmp_path: Path
) -> None:
    before = (tmp_path / "rows.npy").stat().st_mtime_ns
    texts = examples.indices("train")
    again = pack(table, texts, size=SIZE, pad=PAD, folder=tmp_path, name="rows")
    assert (tmp_path / "rows.npy").stat().st_mtime_ns == before
    assert np.array_equal(again.ids, rows.ids)


def test_a_text_of_a_word_is_a_row(table: TokenTable, tmp_path: Path) -> None:
    some = np.argsort(table.lengths())[:1]
    found = pack(table, some, size=512, pad=PAD, folder=tmp_path, name="one")
    assert found.ids.shape == (1, 512)
    assert found.n_tokens == int(table.lengths()[some][0]) + 3


def masking(tokenizer: Tokenizer, *, fraction: float = 0.15, seed: int = 0) -> Masking:
    return Masking(tokenizer, mask=MASK, fraction=fraction, seed=seed)


def test_fifteen_in_a_hundred_are_chosen_of_which_80_are_masked_and_10_replaced(
    tokenizer: Tokenizer, rows: PackedRows
) -> None:
    hider, every = masking(tokenizer), np.arange(len(rows))
    ids = rows.take(every)
    free = ~np.isin(ids, [CLS, SEP, PAD])
    masked = replaced = kept = n_chosen = 0
    for epoch in range(40):
        found = hider.hide(rows, every, epoch=epoch)
        assert not (found.chosen & ~free).any()
        assert np.array_equal(found.targets, ids[found.chosen])
        assert np.array_equal(found.ids[~found.chosen], ids[~found.chosen])
        assert np.array_equal(found.chosen.sum(axis=1), hider.n_chosen(rows))
        shown = found.ids[found.chosen]
        n_chosen += len(shown)
        masked += int((shown == MASK).sum())
        kept += int((shown == found.targets).sum())
        replaced += int(((shown != MASK) & (shown != found.targets)).sum())
        assert not np.isin(shown[shown != MASK], [CLS, SEP, PAD]).any()
    assert n_chosen / (40 * free.sum()) == pytest.approx(0.15, abs=0.01)
    assert masked / n_chosen == pytest.approx(0.8, abs=0.03)
    assert replaced / n_chosen == pytest.approx(0.1, abs=0.03)
    assert kept / n_chosen == pytest.approx(0.1, abs=0.03)


def test_the_mask_is_of_seed_epoch_and_row_alone(tokenizer: Tokenizer, rows: PackedRows) -> None:
    hider = masking(tokenizer)
    together = hider.hide(rows, np.array([3, 1, 2]), epoch=5)
    alone = hider.hide(rows, np.array([2]), epoch=5)
    assert np.array_equal(together.ids[2], alone.ids[0])
    others = [
        hider.hide(rows, np.array([2]), epoch=6),
        masking(tokenizer, seed=1).hide(rows, np.array([2]), epoch=5),
    ]
    assert all(not np.array_equal(other.ids, alone.ids) for other in others)
