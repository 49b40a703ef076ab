from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.data.preparing import prepare_data
from orchestrator.data.texts import (
    DecodedText,
    decode_text,
    decoded_text,
    given_text,
    text_hash,
)
from orchestrator.errors import DataError, UnreadableExample
from orchestrator.spec.data import DataSpec
from tests.orchestrator.text_material import write_texts


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "cp1252"]
)
def test_encodings_are_told_apart(encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    data = f"{mark}Größe: 5 Zoll".encode(encoding)
    assert decoded_text(data) == DecodedText("Größe: 5 Zoll", assumed=encoding == "cp1252")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a\0b", "NUL"),
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        ("a".encode("utf-16")[2:], "NUL"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableExample, match=reason):
        decode_text(data)


def test_copies_are_found_whatever_their_spaces_and_unicode_form() -> None:
    assert text_hash("Größe  5\r\n") == text_hash("Gro\u0308ße 5")
    assert text_hash("Größe 5") != text_hash("größe 5")


def test_characters_that_are_given_keep_their_places() -> None:
    assert given_text("\ufeffa \ud83d b\udc00") == " a ? b?"
    assert given_text("a 😀 b") == "a 😀 b"
    for empty in ("\ufeff", " \n"):
        with pytest.raises(UnreadableExample, match="is empty"):
            given_text(empty)
    with pytest.raises(UnreadableExample, match="NUL"):
        given_text("a\0b")


def test_lone_surrogates_in_a_table_become_question_marks(tmp_path: Path) -> None:
    names = [(label, number) for label in "ab" for number in range(6)]
    lines = [f'{{"text": "\\ud83d of {a}{n}, \\ud83d\\ude00", "label": "{a}"}}' for a, n in names]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    examples = prepared(tmp_path / "m.jsonl", tmp_path).examples
    texts = {examples.text(i) for i in range(len(examples))}
    assert texts == {f"? of {label}{number}, 😀" for label, number in names}


def prepared(data: Path, tmp_path: Path, **spec: object):
    return prepare_data(
        DataSpec(train=str(data), **spec),  # type: ignore[arg-type]
        task="text-classification",
        seed=0,
        cache=tmp_path / "cache",
    )


def test_a_folder_of_texts_is_read_audited_and_split(tmp_path: Path) -> None:
    root = write_texts(tmp_path / "train", 60, seed=0)
    (root / "animals" / "binary.txt").write_bytes(b"cat\0dog")
    (root / "animals" / "empty.txt").write_text(" \n")
    (root / "animals" / "old.txt").write_bytes("Kätzchen".encode("cp1252"))
    (root / "animals" / "picture.png").write_bytes(b"")
    (root / "colours" / "copy.txt").write_text((root / "colours" / "000.txt").read_text() + "\n\n")
    result = prepared(root, tmp_path, validation=0.2)

    kinds = {finding.kind: finding for finding in result.audit.faults}
    assert {q.reason for q in result.audit.quarantined} == {
        "holds NUL characters: it is no text",
        "is empty",
    }
    assert kinds["encoding"].count == 1
    assert "1 texts are not UTF-8" in kinds["encoding"].message
    assert "texts occur more than once" in kinds["duplicates"].message
    assert kinds["other-files"].items == ("1 x .png",)
    assert "no texts" in kinds["other-files"].message
    examples = result.examples
    assert examples.labels == ("animals", "colours", "numbers")
    assert "Kätzchen" in {examples.text(i) for i in range(len(examples))}


def test_a_text_of_training_in_the_test_set_is_left_out_of_training(tmp_path: Path) -> None:
    train = write_texts(tmp_path / "train", 12, seed=0)
    test = write_texts(tmp_path / "test", 3, seed=1)
    leaked = (train / "colours" / "003.txt").read_text()
    (test / "colours" / "leak.txt").write_text(f"  {leaked}")
    result = prepared(train, tmp_path, test=str(test))
    assert "1 texts of validation or test are also in train" in str(result.audit.lines())


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_texts_stand_in_a_manifest_or_are_named_by_it(name: str, tmp_path: Path) -> None:
    root = write_texts(tmp_path / "tree", 8, seed=0)
    files = sorted(root.rglob("*.txt"))
    long = "word, " * 200_000  # longer than Python's csv takes by default
    inline = [
        (long if i == 0 else path.read_text(), path.parent.name) for i, path in enumerate(files)
    ]
    by_path = [(str(path.relative_to(tmp_path)), path.parent.name) for path in files]
    for column, rows in (("text", inline), ("path", by_path)):
        manifest = tmp_path / f"{column}-{name}"
        if name.endswith("csv"):
            quoted = ['"' + text.replace('"', '""') + f'",{label}' for text, label in rows]
            manifest.write_text("\n".join([f"{column},label", *quoted]))
        else:
            lines = [json.dumps({column: text, "label": label}) for text, label in rows]
            manifest.write_text("\n".join(lines))
        examples = prepared(manifest, tmp_path).examples
        assert len(examples) == 24
        assert (long.strip() in {examples.text(i).strip() for i in range(24)}) == (column == "text")


def test_several_labels_a_text(tmp_path: Path) -> None:
    rows = [
        json.dumps({"text": f"text {i}", "labels": ["a", "b"] if i % 2 else ["a"]})
        for i in range(40)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    result = prepare_data(
        DataSpec(train=str(tmp_path / "m.jsonl")),
        task="text-multilabel-classification",
        seed=0,
        cache=tmp_path / "cache",
    )
    assert result.examples.targets().sum(axis=0).tolist() == [40, 20]


def test_a_folder_without_texts_says_so(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "x.png").touch()
    with pytest.raises(DataError, match="no class folder with texts in it"):
        prepared(tmp_path / "train", tmp_path)
