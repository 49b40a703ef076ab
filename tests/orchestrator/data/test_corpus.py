"""A corpus: where documents may lie, which of them count, and which are held out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.data.corpus import (
    Corpus,
    corpus_of_examples,
    evaluated_contents,
    pieces,
    read_corpus,
)
from orchestrator.data.preparing import prepare_data
from orchestrator.errors import DataError
from orchestrator.spec.data import DataSpec
from orchestrator.spec.parts import Modality
from orchestrator.spec.pretraining import CorpusSpec
from tests.orchestrator.text_material import write_texts

Read = Callable[..., Corpus]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """`read_corpus` with a cache of the test's own."""

    def make(
        *files: object,
        column: str | None = None,
        modality: Modality = "text",
        excluded: frozenset[str] = frozenset(),
    ) -> Corpus:
        return read_corpus(
            CorpusSpec(files=tuple(map(str, files)), column=column),
            modality=modality,
            fraction=0.3,
            seed=0,
            excluded=excluded,
            cache=tmp_path / "cache",
        )

    return make


def texts_of(corpus: Corpus) -> list[str]:
    return sorted(corpus.examples.text(i).strip() for i in range(len(corpus)))


def write(root: Path, **files: str | bytes) -> Path:
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (root / name.replace("_", ".")).write_bytes(data)
    return root


def test_files_folders_globs_and_tables_are_one_corpus(read: Read, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", a_txt="one", b_md="two", c_bin=b"\0\1", _hidden="no")
    globbed = write(tmp_path / "globbed", x_log="three", y_log="four")
    lines = [json.dumps({"id": i, "body": word}) for i, word in enumerate(["five", "six"])]
    write(tmp_path, t_jsonl="\n".join(lines), u_csv="id,text\n1,seven\n2,eight\n")
    pq.write_table(pa.table({"text": ["nine"]}), tmp_path / "v.parquet")
    found = read(folder, globbed / "*.log", tmp_path / "t.jsonl", tmp_path / "u.csv",
                 tmp_path / "v.parquet")  # fmt: skip
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert texts_of(found) == sorted(words)
    assert 1 <= found.n_held_out < len(found)


def test_a_column_is_taken_by_name_and_a_wrong_one_is_told(read: Read, tmp_path: Path) -> None:
    write(tmp_path, t_csv="text,notes\nwrong,one\nwrong,two\n")
    assert texts_of(read(tmp_path / "t.csv", column="notes")) == ["one", "two"]
    with pytest.raises(DataError, match=r"corpus\.column 'note' is no column\. It has text, notes"):
        read(tmp_path / "t.csv", column="note")


def test_order_names_and_copies_change_nothing(read: Read, tmp_path: Path) -> None:
    one = read(write(tmp_path / "one", a_txt="x y", b_txt="z", c_txt="w"))
    other = read(write(tmp_path / "other", q_txt="z", r_txt="w", s_txt="x  y\n", t_txt="z"))
    assert one.digest == other.digest
    assert other.notes == ("1 documents are copies of others and count once",)
    held = [
        {c.examples.content(int(i)) for i in c.examples.indices("validation")} for c in (one, other)
    ]
    assert held[0] == held[1]
    assert read(write(tmp_path / "third", a_txt="x y", b_txt="z")).digest != one.digest


def test_empty_texts_are_left_out_and_encodings_are_told(read: Read, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "texts", a_txt="  \n", b_txt="café".encode("cp1252"), c_txt="thé", d_txt="té"
    )
    found = read(folder)
    assert texts_of(found) == ["café", "thé", "té"]
    assert found.notes == (
        "1 documents are empty and are left out",
        "1 documents are not UTF-8 and were read as Windows-1252",
    )


def test_too_many_files_with_nul_bytes_are_refused_by_name(read: Read, tmp_path: Path) -> None:
    folder = write(tmp_path / "texts", a_txt=b"a\0b", b_txt="b", c_txt="c")
    with pytest.raises(DataError, match=r"1 of the 3 documents .*a\.txt: holds NUL characters"):
        read(folder)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "the corpus is empty: no text in"),
        ({"a_txt": " ", "b_txt": "\n"}, "holds 0 distinct documents. At least two"),
        ({"a_txt": "one"}, "holds 1 distinct documents. At least two"),
    ],
)
def test_a_corpus_with_nothing_to_learn_is_refused(
    read: Read, tmp_path: Path, files: dict[str, str], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        read(write(tmp_path / "texts", **files))


def test_a_glob_that_matches_nothing_any_more_is_told(read: Read, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\*\.txt matches no file"):
        read(tmp_path / "*.txt")


def test_a_document_of_ten_megabytes_is_many(read: Read, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = " ".join(rng.choice(["alpha", "beta", "gamma", "delta"], 1_900_000))
    assert len(words) > 10_000_000
    found = read(write(tmp_path / "texts", big_txt=words))
    assert len(found) == len(list(pieces(words))) > 100
    assert max(len(found.examples.text(i)) for i in range(0, len(found), 10)) <= 100_000


@pytest.mark.parametrize("text", ["", "abc", "ab cd ef", "abcdefgh ij", " a  b ", "éé éé éé"])
def test_pieces_are_the_text_and_cut_no_word(text: str) -> None:
    found = list(pieces(text, 4))
    assert "".join(found) == text
    assert all(len(piece) <= 4 for piece in found)
    for one, other in itertools.pairwise(found):
        assert other[0].isspace() or " " not in one[1:]


def test_training_examples_are_a_corpus_and_evaluated_ones_are_in_none(
    read: Read, tmp_path: Path
) -> None:
    write_texts(tmp_path / "train", 6, seed=0)
    write_texts(tmp_path / "test", 2, seed=1)
    spec = DataSpec(train=str(tmp_path / "train"), test=str(tmp_path / "test"), validation=0.3)
    examples = prepare_data(
        spec, task="text-classification", seed=0, cache=tmp_path / "data"
    ).examples
    own = corpus_of_examples(examples, fraction=0.3, seed=0, cache=tmp_path / "cache")
    train = {examples.content(int(i)) for i in examples.indices("train")}
    assert {own.examples.content(i) for i in range(len(own))} == train
    assert own.examples.labels == ("",)

    evaluated = evaluated_contents(examples)
    everything = read(tmp_path / "train", tmp_path / "test", excluded=evaluated)
    assert everything.digest == own.digest
    n_out = len(examples) - len(train)
    assert everything.notes == (
        f"{n_out} documents are validated or tested on by the sweep and are left out",
    )


def test_of_what_a_sweep_trains_on_a_corpus_holds_out_its_own_share(tmp_path: Path) -> None:
    """Of the same seed: the draws that left an example to training are not drawn from again."""
    write_texts(tmp_path / "train", 60, seed=0)
    spec = DataSpec(train=str(tmp_path / "train"), validation=0.3)
    examples = prepare_data(
        spec, task="text-classification", seed=0, cache=tmp_path / "data"
    ).examples
    own = corpus_of_examples(examples, fraction=0.2, seed=0, cache=tmp_path / "cache")
    assert 0.1 < own.n_held_out / len(own) < 0.3


def squad(root: Path, name: str, asked: dict[str, list[str]]) -> str:
    """A SQuAD file: the questions on each passage, answered by its first word."""
    paragraphs = [
        {
            "context": context,
            "qas": [
                {
                    "id": f"{n}-{k}",
                    "question": question,
                    "answers": [{"text": context.split()[0], "answer_start": 0}],
                }
                for k, question in enumerate(questions)
            ],
        }
        for n, (context, questions) in enumerate(asked.items())
    ]
    (root / name).write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return str(root / name)


def test_of_questions_the_passages_are_learnt_each_once(tmp_path: Path) -> None:
    passages = {f"passage {n} is here": [f"is it {n}?", f"was it {n}?"] for n in range(6)}
    shared = {"passage 2 is here": ["what of test?"], "passage of test": ["which?"]}
    spec = DataSpec(
        train=squad(tmp_path, "train.json", passages),
        validation=squad(tmp_path, "validation.json", {"passage 5 is here": ["and now?"]}),
        test=squad(tmp_path, "test.json", shared),
    )
    examples = prepare_data(
        spec, task="question-answering", seed=0, cache=tmp_path / "data"
    ).examples
    found = corpus_of_examples(examples, fraction=0.4, seed=0, cache=tmp_path / "cache")
    # What validation or test asks on as well is not learnt, though train asks on it too.
    assert texts_of(found) == [f"passage {n} is here" for n in (0, 1, 3, 4)]
    assert found.notes == ("2 documents are validated or tested on by the sweep and are left out",)
    assert 1 <= found.n_held_out < len(found)
    assert not found.examples.annotated
    again = corpus_of_examples(examples, fraction=0.4, seed=0, cache=tmp_path / "cache")
    assert (again.digest, again.examples.digest) == (found.digest, found.examples.digest)


def test_the_passages_of_a_test_file_are_in_no_corpus_of_raw_texts(
    read: Read, tmp_path: Path
) -> None:
    long = "word " * 30_000  # longer than a piece
    asked = {"passage of test": ["is it?", "was it?"], f"{long}end": ["which?"]}
    spec = DataSpec(
        train=squad(tmp_path, "train.json", {f"passage {n}": ["is it?"] for n in range(4)}),
        test=squad(tmp_path, "test.json", asked),
        validation=0.3,
    )
    examples = prepare_data(
        spec, task="question-answering", seed=0, cache=tmp_path / "data"
    ).examples
    folder = write(
        tmp_path / "raw", a_txt="passage  of test\n", b_txt=f"{long}end", c_txt="one", d_txt="two"
    )
    found = read(folder, excluded=evaluated_contents(examples, texts=True))
    assert texts_of(found) == ["one", "two"]
    assert found.notes == ("3 documents are validated or tested on by the sweep and are left out",)


def test_a_long_text_that_is_tested_on_is_left_out_in_all_its_pieces(
    read: Read, tmp_path: Path
) -> None:
    write_texts(tmp_path / "train", 6, seed=0)
    write_texts(tmp_path / "test", 2, seed=1)
    long = " ".join(f"word{i}" for i in range(40_000))
    (tmp_path / "test" / "animals" / "long.txt").write_text(long)
    spec = DataSpec(train=str(tmp_path / "train"), test=str(tmp_path / "test"), validation=0.3)
    examples = prepare_data(
        spec, task="text-classification", seed=0, cache=tmp_path / "data"
    ).examples
    folder = write(tmp_path / "raw", a_txt=long, b_txt="one", c_txt="two")
    assert len(read(folder)) == 2 + len(list(pieces(long))) > 5
    excluded = evaluated_contents(examples, texts=True)
    assert texts_of(read(folder, excluded=excluded)) == ["one", "two"]


def test_lone_surrogates_in_a_table_become_question_marks(read: Read, tmp_path: Path) -> None:
    lines = ['{"text": "one \\ud83d"}', '{"text": "two"}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert texts_of(read(tmp_path / "t.jsonl")) == ["one ?", "two"]


def test_images_are_a_corpus_too(read: Read, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(4):
        pixels = np.full((8, 8, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    found = read(tmp_path / "images", modality="image")
    assert len(found) == 4
    assert found.examples.image(0).size == (8, 8)
