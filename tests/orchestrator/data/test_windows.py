"""Windows lose nothing: what is true of a text goes in, and comes out as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from orchestrator.data.tokens import TokenRows
from orchestrator.data.windows import (
    NO_WORD,
    Cutter,
    Layout,
    encode,
    encoded,
    first_tokens,
    said_of,
    window_targets,
    words_of,
)
from orchestrator.spec.parts import TaskSpec, TextContract
from orchestrator.tasks.annotations import Answer, Question, TaggedText
from orchestrator.tasks.question_answering import QuestionAnswering, text_of
from orchestrator.tasks.task import build_task
from orchestrator.tasks.token_classification import TokenClassification
from tests.orchestrator.text_material import tiny_tokenizer

TAGGING = build_task(TaskSpec(kind="token-classification", labels=("LOC", "PER")))
ASKING = build_task(TaskSpec(kind="question-answering", labels=("answer", "no answer")))
WORDS = ["cat", "Zurich", "of", "ten", "xylophone", "is", ".", "e-mail"]


def contract(size: int = 16, overlap: int = 4) -> TextContract:
    return TextContract(size=size, tokenizer="0" * 64, pad=0, overlap=overlap)


def cutter(*, pair: bool = False, size: int = 16, overlap: int = 4) -> Cutter:
    return Cutter(Layout.of(tiny_tokenizer(), pair=pair), contract(size, overlap))


def tagged(n_words: int, seed: int) -> TaggedText:
    rng = np.random.default_rng(seed)
    words = [str(word) for word in rng.choice(WORDS, n_words)]
    return text_of_words(words, [str(tag) for tag in rng.choice(["O", "B-LOC", "B-PER"], n_words)])


def text_of_words(words: Sequence[str], tags: Sequence[str]) -> TaggedText:
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
    spans = tuple((int(s), int(s) + len(w)) for s, w in zip(starts, words, strict=True))
    return TaggedText(" ".join(words), spans, tuple(tags))


@pytest.mark.parametrize("overlap", [0, 4, 7])
@pytest.mark.parametrize("n_tokens", [0, 1, 14, 15, 28, 29, 100])
def test_windows_cover_every_token_and_share_what_they_should(n_tokens: int, overlap: int) -> None:
    windows = cutter(overlap=overlap).windows(0, n_tokens)
    assert all(stop - start <= 14 for start, stop in windows)
    assert {t for start, stop in windows for t in range(start, stop)} == set(range(n_tokens))
    assert windows[-1][1] == n_tokens
    for (_, stop), (start, _) in itertools.pairwise(windows):
        assert stop - start >= overlap


@pytest.mark.parametrize("n_words", [1, 5, 12, 40])
@pytest.mark.parametrize("overlap", [0, 4])
def test_tags_that_are_learnt_are_the_tags_that_are_said(n_words: int, overlap: int) -> None:
    assert isinstance(TAGGING, TokenClassification)
    made = cutter(overlap=overlap)
    for seed in range(5):
        text = tagged(n_words, seed)
        tokens = encode(tiny_tokenizer(), text)
        windows = made.windows(0, len(tokens.ids))
        targets = window_targets([(tokens, text, w) for w in windows], made, TAGGING)
        assert (targets != -1).sum() > 0
        assert targets.shape[1] <= 16
        outputs = np.eye(TAGGING.n_outputs)[targets.clip(min=0)]
        pairs = list(zip(windows, outputs, strict=True))
        said = said_of(tokens, text, pairs, made, TAGGING)
        assert tuple(TAGGING.spec.outputs[i] for i in said.argmax(axis=1)) == text.tags


@pytest.mark.parametrize("answer", ["Zurich", "ten cats", "first", "last .", "xylophone is"])
def test_the_answer_that_is_learnt_is_the_answer_that_is_said(answer: str) -> None:
    assert isinstance(ASKING, QuestionAnswering)
    made = cutter(pair=True, size=24, overlap=8)
    context = "first of e-mail is ten cats in Zurich . a xylophone is red and it is the last ."
    asked = Question("is it?", context, (Answer(answer, context.index(answer)),))
    tokens = encode(tiny_tokenizer(), asked)
    windows = made.windows(len(tokens.lead), len(tokens.ids))
    assert len(windows) > 2
    targets = window_targets([(tokens, asked, w) for w in windows], made, ASKING)
    shown = targets[:, 0, 0] == 0
    assert shown.any()
    assert not shown.all()
    logits = np.where(targets < 0, -9.0, 9.0 * targets)
    said = said_of(tokens, asked, list(zip(windows, logits, strict=True)), made, ASKING)
    assert text_of(said[0], context) == answer


@pytest.mark.parametrize("question", ["is it?", "\u200b"])
def test_a_windows_own_tokens_stand_where_they_are_said_to(question: str) -> None:
    """Behind a question, and behind one of which the tokenizer leaves nothing."""
    made = cutter(pair=True)
    tokens = encode(tiny_tokenizer(), Question(question, "it is a cat", ()))
    rows = made.rows([(tokens, (0, len(tokens.ids)))])
    assert len(tokens.lead) == (0 if question == "\u200b" else 3)
    start = made.before(tokens)
    assert rows.ids[0, start : start + len(tokens.ids)].tolist() == list(tokens.ids)


def test_a_question_without_an_answer_is_learnt_as_the_first_token() -> None:
    asked = Question("is it?", "it is a cat", ())
    made = cutter(pair=True)
    tokens = encode(tiny_tokenizer(), asked)
    targets = window_targets([(tokens, asked, (0, len(tokens.ids)))], made, ASKING)
    assert targets[0, 0].tolist() == [1, 1]
    assert (targets[0, 1 : made.before(tokens)] == -1).all(), "the question is out of reach"
    assert targets[0, -1, 0] == -1, "so is the end"


def test_a_word_is_said_by_the_window_that_shows_most_around_it() -> None:
    assert isinstance(TAGGING, TokenClassification)
    made = cutter(overlap=8)
    text = TaggedText(
        "cat " * 19 + "cat", tuple((4 * i, 4 * i + 3) for i in range(20)), ("O",) * 20
    )
    tokens = encode(tiny_tokenizer(), text)
    windows = made.windows(0, 20)
    outputs = [np.full((16, 5), number, float) for number in range(len(windows))]
    said = said_of(
        text=tokens,
        truth=text,
        windows=list(zip(windows, outputs, strict=True)),
        cutter=made,
        task=TAGGING,
    )
    for word, probs in enumerate(said):
        around = [min(word - a, b - 1 - word) if a <= word < b else -1 for a, b in windows]
        assert around[int(probs[0])] == max(around)


def test_one_window_is_laid_out_as_the_tokenizer_does() -> None:
    tokenizer = tiny_tokenizer()
    asked = Question("is it ten?", "the cat is in Zurich", ())
    whole = tokenizer.encode(asked.question, asked.context)
    made = cutter(pair=True, size=64)
    tokens = encode(tokenizer, asked)
    rows = made.rows([(tokens, (0, len(tokens.ids)))])
    assert rows.ids[0].tolist() == whole.ids
    assert rows.types is not None
    assert rows.types[0].tolist() == whole.type_ids

    text = tagged(6, 0)
    tokens = encode(tokenizer, text)
    rows = cutter(size=64).rows([(tokens, (0, len(tokens.ids)))])
    assert rows.ids[0].tolist() == tokenizer.encode(text.text).ids
    assert rows.types is None


def test_a_long_question_leaves_half_of_an_input_to_the_context() -> None:
    made = cutter(pair=True, size=23)
    asked = Question("cat " * 50, "ten " * 15, ())
    tokens = encode(tiny_tokenizer(), asked)
    windows = made.windows(len(tokens.lead), len(tokens.ids))
    rows = made.rows([(tokens, window) for window in windows])
    assert rows.ids.shape[1] <= 23
    assert made.lead_length(len(tokens.lead)) == 10
    assert {t for a, b in windows for t in range(a, b)} == set(range(15))


@pytest.mark.parametrize("overlap", [4, 9, 15])
def test_windows_beside_a_long_question_share_half_of_what_it_leaves_at_most(overlap: int) -> None:
    made = cutter(pair=True, size=23, overlap=overlap)
    windows = made.windows(50, 1_000)
    assert {stop - start for start, stop in windows} == {10}
    steps = [after[0] - before[0] for before, after in itertools.pairwise(windows)]
    assert set(steps[:-1]) == {10 - min(overlap, 5)}
    assert {t for a, b in windows for t in range(a, b)} == set(range(1_000))


def test_only_the_first_token_of_a_word_carries_its_tag() -> None:
    text = TaggedText("Zurich is ten", ((0, 6), (7, 9), (10, 13)), ("O",) * 3)
    tokens = encode(tiny_tokenizer(), text)
    first = first_tokens(tokens, text.words)
    assert first.tolist() == [0, *[NO_WORD] * 5, 1, 2]


SAID = (
    ("He", "O"),
    ("left", "O"),
    ("Coca-Cola", "B-ORG"),
    ("U.S.", "B-LOC"),
    ("Inc", "I-LOC"),
    ("COVID19", "B-ORG"),
    ("1996-08-22", "O"),
    ("...", "O"),
)


def word_piece() -> Tokenizer:
    return tiny_tokenizer()


def byte_level() -> Tokenizer:
    """As RoBERTa's: letters, digits and punctuation are words of their own."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["He left Coca-Cola"], trainers.BpeTrainer(initial_alphabet=alphabet))
    return made


def sentence_piece() -> Tokenizer:
    """As XLM-R's and DeBERTa-v3's: words are what spaces separate."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"])
    made.train_from_iterator([" ".join(word for word, _ in SAID)] * 20, trainer)
    return made


@pytest.mark.parametrize("tokenizer", [word_piece, byte_level, sentence_piece])
def test_whatever_raw_texts_have_as_words_is_learnt(tokenizer: Callable[[], Tokenizer]) -> None:
    text = text_of_words([word for word, _ in SAID], [tag for _, tag in SAID])
    own = tokenizer().encode(text.text, add_special_tokens=False)
    tokens = encoded(own, text)
    made = cutter(size=256)
    task = build_task(TaskSpec(kind="token-classification", labels=("LOC", "ORG")))
    assert isinstance(task, TokenClassification)
    (row,) = window_targets([(tokens, text, (0, len(tokens.ids)))], made, task)
    learnt = row[made.before(tokens) :]
    served = TaggedText(text.text, words_of(own, text.text), ())
    assert len(served.words) > len(SAID)
    for token, word in enumerate(first_tokens(tokens, served.words)):
        if word == NO_WORD:
            continue
        start, _ = served.words[word]
        of_data = next(i for i, (a, b) in enumerate(text.words) if a <= start < b)
        tag = text.tags[of_data]
        inner = start > text.words[of_data][0] and tag != "O"
        assert task.spec.outputs[learnt[token]] == (f"I-{tag[2:]}" if inner else tag), word
    # What is learnt, said of a raw text, are the entities of the data.
    outputs = np.eye(task.n_outputs)[row.clip(min=0)]
    said = said_of(tokens, served, [((0, len(tokens.ids)), outputs)], made, task)
    found = task.answer(said, top=1, of=served)["entities"]
    assert [entity["text"] for entity in found] == ["Coca-Cola", "U.S. Inc", "COVID19"]


def test_a_word_of_which_the_tokenizer_makes_nothing_has_no_entity() -> None:
    assert isinstance(TAGGING, TokenClassification)
    text = TaggedText("cat \u0301 ten", ((0, 3), (4, 5), (6, 9)), ("B-LOC", "B-LOC", "B-LOC"))
    tokens = encode(tiny_tokenizer(), text)
    made = cutter()
    outputs = np.tile(np.eye(5)[1], (16, 1))
    said = said_of(tokens, text, [((0, len(tokens.ids)), outputs)], made, TAGGING)
    assert said.argmax(axis=1).tolist() == [1, 0, 1]


def test_words_are_those_of_the_tokenizer_with_punctuation_apart() -> None:
    text = "The cat, in Zurich."
    bert = tiny_tokenizer().encode(text, add_special_tokens=False)
    expected = ["The", "cat", ",", "in", "Zurich", "."]
    assert [text[a:b] for a, b in words_of(bert, text)] == expected

    known = "▁The ▁cat , ▁in ▁Zurich . ▁"
    pieces = [("<unk>", 0.0), *((piece, -1.0) for piece in known.split(" "))]
    spaced = Tokenizer(models.Unigram(pieces, unk_id=0))
    spaced.pre_tokenizer = pre_tokenizers.Metaspace()
    own = spaced.encode(text, add_special_tokens=False)
    assert [text[a:b] for a, b in words_of(own, text)] == expected


def test_batches_of_pairs_are_joined_with_their_types() -> None:
    made = cutter(pair=True, size=32)
    parts = []
    for context in ("it is ten", "the cat of ten is in Zurich"):
        tokens = encode(tiny_tokenizer(), Question("is it?", context, ()))
        parts.append(made.rows([(tokens, (0, len(tokens.ids)))]))
    whole = TokenRows.joined(parts, 0)
    for row, part in enumerate(parts):
        assert part.types is not None
        assert whole.types is not None
        length = int(part.lengths[0])
        assert np.array_equal(whole.types[row, :length], part.types[0])
        assert np.array_equal(whole.ids[row, :length], part.ids[0])
    assert whole.take(np.array([1])).types is not None
