"""A tiny text encoder in the hub's format, and texts of three kinds that it can tell apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = {
    "animals": ["cat", "dog", "horse", "bird", "fish", "cow", "sheep", "goat", "lion", "bear"],
    "colours": ["red", "green", "blue", "yellow", "white", "black", "pink", "brown", "grey"],
    "numbers": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
}
FILLERS = ["the", "a", "of", "and", "to", "in", "is", "was", "it", "for", "on", "with", "as"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_tokenizer(extra: int = 0, words: Sequence[str] = ()) -> Tokenizer:
    """A word-piece tokenizer as BERT's, of some two hundred tokens, `extra` more and `words`."""
    known = [*SPECIAL, *LETTERS, *FILLERS, *(w for some in WORDS.values() for w in some)]
    known += [f"extra{i}" for i in range(extra)]
    words = [*known, *words]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def write_encoder(
    folder: Path,
    *,
    n_layers: int = 3,
    seed: int = 0,
    words: Sequence[str] = (),
    width: int = 32,
    positions: int = 64,
    dropout: float = 0.1,
) -> Path:
    """A BERT with random weights, by default of three layers and width 32, that knows `words`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(words=words)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=n_layers,
        num_attention_heads=max(2, width // 32),
        intermediate_size=2 * width,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def write_texts(root: Path, n: int, *, seed: int) -> Path:
    """`n` texts of each kind, of very different lengths, one folder a kind."""
    rng = np.random.default_rng(seed)
    for label, words in WORDS.items():
        (root / label).mkdir(parents=True)
        for i in range(n):
            length = int(rng.choice([4, 8, 30, 70]))
            chosen = [
                str(rng.choice(words if rng.random() < 0.3 else FILLERS)) for _ in range(length)
            ]
            text = " ".join([*chosen, str(rng.choice(words)), f"{'abcdefghij'[i % 10]}{label[:2]}"])
            (root / label / f"{i:03d}.txt").write_text(f"{text} {seed * 1000 + i}\n")
    return root


def write_phrases(root: Path, n: int, *, seed: int) -> Path:
    """`n` texts without labels whose words follow from the words before them."""
    rng = np.random.default_rng(seed)
    kinds = list(WORDS.values())
    root.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        words = kinds[int(rng.integers(len(kinds)))]
        at, text = int(rng.integers(len(words))), []
        for _ in range(int(rng.integers(10, 60))):
            text += ["the", words[at % len(words)]]
            at += 1
        (root / f"{i:03d}.txt").write_text(" ".join(text) + "\n")
    return root


def words_of(*texts: str) -> list[str]:
    """The words and signs of some texts in lower case, to be tokens of an encoder."""
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
