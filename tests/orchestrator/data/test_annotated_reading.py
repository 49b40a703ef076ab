"""Annotated texts from files, tables and saved data sets: one form, and every repair is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.evaluation_set import evaluation_set
from orchestrator.data.examples import Examples
from orchestrator.data.preparing import Prepared, prepare_data
from orchestrator.errors import DataError
from orchestrator.spec.data import DataSpec
from orchestrator.spec.parts import TaskKind, TaskSpec
from orchestrator.tasks.annotations import Answer, Question, TaggedText

TAGS: TaskKind = "token-classification"
QUESTIONS: TaskKind = "question-answering"
CONLL = (
    "Anna B-PER\nlives O\nin O\nNew B-LOC\nYork I-LOC\n\nNobody O\ncame O\n\nBorg B-PER\nwon O\n"
)
CONTEXT = "Anna Novak founded the museum . Novak led it until 1950 ."


def prepared(path: Path, task: TaskKind, **given: Any) -> Prepared:
    spec = DataSpec(train=str(path), **{"validation": 0.3, **given})
    return prepare_data(spec, task=task, seed=0, cache=path.parent / "cache")


def annotations(examples: Examples) -> list[Any]:
    return [examples.annotation(i) for i in range(len(examples))]


def messages(found: Prepared) -> dict[str, str]:
    return {finding.kind: finding.message for finding in found.audit.faults}


def squad(*asked: tuple[str, Any], context: str = CONTEXT) -> str:
    qas = [{"id": str(i), "question": q, "answers": a} for i, (q, a) in enumerate(asked)]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]})


def test_a_conll_file_becomes_texts_whose_words_have_tags(tmp_path: Path) -> None:
    (tmp_path / "names.conll").write_text(CONLL)
    found = prepared(tmp_path / "names.conll", TAGS)
    assert found.examples.labels == ("LOC", "PER")
    text = next(t for t in annotations(found.examples) if t.text.startswith("Anna"))
    assert text == TaggedText(
        "Anna lives in New York",
        ((0, 4), (5, 10), (11, 13), (14, 17), (18, 22)),
        ("B-PER", "O", "O", "B-LOC", "I-LOC"),
    )
    assert "3 texts" not in messages(found).get("tags", "")


def test_a_table_and_a_saved_data_set_say_the_same_as_the_file(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    sentences = [
        (["Anna", "lives", "in", "New", "York"], ["B-PER", "O", "O", "B-LOC", "I-LOC"]),
        (["Nobody", "came"], ["O", "O"]),
        (["Borg", "won"], ["B-PER", "O"]),
    ]
    columns = {"tokens": [w for w, _ in sentences], "tags": [t for _, t in sentences]}
    (tmp_path / "names.conll").write_text(CONLL)
    lines = [json.dumps({"tokens": w, "tags": t}) for w, t in sentences]
    (tmp_path / "names.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table(columns), tmp_path / "names.parquet")
    tags = datasets.ClassLabel(names=["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": datasets.Sequence(tags)}
    )
    numbers = [[tags.str2int(tag) for tag in t] for _, t in sentences]
    saved = datasets.Dataset.from_dict(
        {"tokens": columns["tokens"], "ner_tags": numbers}, features=features
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    found = [
        prepared(tmp_path / name, TAGS).examples
        for name in ("names.conll", "names.jsonl", "names.parquet", "saved")
    ]
    assert len({examples.digest for examples in found}) == 1


def test_tags_decide_the_digest(tmp_path: Path) -> None:
    digests = set()
    for number, tag in enumerate(("B-LOC", "B-PER")):
        path = tmp_path / f"{number}.conll"
        path.write_text(f"Anna B-PER\nBern {tag}\n\nBern B-LOC\n\nOslo B-LOC\n")
        digests.add(prepared(path, TAGS).examples.digest)
    assert len(digests) == 2


def test_invalid_tags_are_repaired_and_empty_sentences_left_out_and_both_counted(
    tmp_path: Path,
) -> None:
    rows = [
        {"tokens": ["Anna", "came"], "tags": ["B-PER", "I-LOC"]},
        {"tokens": [], "tags": []},
        {"tokens": ["Borg"], "tags": ["B-PER"]},
        {"tokens": ["Bern"], "tags": ["B-LOC"]},
    ]
    path = tmp_path / "names.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = prepared(path, TAGS)
    assert len(found.examples) == 3
    assert messages(found)["tags"].startswith("1 tags go on with an entity that has not begun")
    assert messages(found)["empty-text"] == "1 texts have no word and are left out"
    again = prepared(path, TAGS)
    assert again.audit == found.audit


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "another number of tags than of words"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "a str where a list of words is expected"),
        ({"tokens": ["a"], "tags": [3]}, "'3' where a tag is expected. Write names"),
    ],
)
def test_rows_that_are_no_tagged_words_are_refused(
    tmp_path: Path, row: dict[str, Any], told: str
) -> None:
    path = tmp_path / "names.jsonl"
    path.write_text(json.dumps({"tokens": ["x"], "tags": ["B-A"]}) + "\n" + json.dumps(row))
    with pytest.raises(DataError, match=told):
        prepared(path, TAGS)


def test_data_without_an_entity_or_an_answer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.conll").write_text("Nobody O\ncame O\n\nx O\n\ny O\n\nz O\n")
    with pytest.raises(DataError, match="no text of train has an entity"):
        prepared(tmp_path / "names.conll", TAGS)
    (tmp_path / "asked.json").write_text(squad(("Who?", []), ("When?", [])))
    with pytest.raises(DataError, match="no text of train has an answer"):
        prepared(tmp_path / "asked.json", QUESTIONS)


def test_kinds_that_only_validation_has_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("Anna B-PER\n\nBorg B-PER\n")
    (tmp_path / "more.conll").write_text("Bern B-LOC\n")
    with pytest.raises(DataError, match=r"1 labels of validation do not occur in train.*'LOC'"):
        prepared(tmp_path / "train.conll", TAGS, validation=str(tmp_path / "more.conll"))
    task = TaskSpec(kind=TAGS, labels=("PER",))
    with pytest.raises(DataError, match=r"1 labels of test do not occur in train.*'LOC'"):
        evaluation_set(str(tmp_path / "more.conll"), task=task, cache=tmp_path / "c")


def test_copies_with_other_tags_are_a_conflict_and_copies_of_test_leak(tmp_path: Path) -> None:
    twice = "Anna B-PER\nBern B-LOC\n\nAnna B-PER\nBern B-PER\n\n"
    rest = "".join(f"Borg B-PER\nin O\nOslo{i} B-LOC\n\n" for i in range(6))
    (tmp_path / "train.conll").write_text(twice + rest)
    (tmp_path / "test.conll").write_text("Borg B-PER\nin O\nOslo1 B-LOC\n")
    found = prepared(tmp_path / "train.conll", TAGS, test=str(tmp_path / "test.conll"))
    assert messages(found)["label-conflict"].startswith("1 texts occur with different labels")
    assert messages(found)["leakage"].startswith("1 texts of validation or test are also in train")
    assert len(found.examples) == 6


def test_squad_files_of_both_versions_become_questions(tmp_path: Path) -> None:
    path = tmp_path / "asked.json"
    asked = [
        ("Who founded it?", [{"text": "Anna Novak", "answer_start": 0}]),
        (
            "Until when?",
            [{"text": "1950", "answer_start": 51}, {"text": "1950 .", "answer_start": 51}],
        ),
        ("Why?", []),
    ]
    path.write_text(squad(*asked))
    found = prepared(path, QUESTIONS)
    assert found.examples.labels == ("answer", "no answer")
    by_question = {q.question: q for q in annotations(found.examples)}
    assert by_question["Who founded it?"] == Question(
        "Who founded it?", CONTEXT, (Answer("Anna Novak", 0),)
    )
    assert by_question["Until when?"].answers == (Answer("1950", 51), Answer("1950 .", 51))
    assert by_question["Why?"].answers == ()
    assert not found.audit.warnings or {f.kind for f in found.audit.warnings} == {"few-images"}


def test_plausible_answers_of_unanswerable_questions_are_none(tmp_path: Path) -> None:
    content = json.loads(squad(("Who?", [{"text": "Anna", "answer_start": 0}])))
    asked = content["data"][0]["paragraphs"][0]["qas"]
    asked.append({"question": "Why?", "answers": [], "is_impossible": True})
    asked[1]["plausible_answers"] = [{"text": "Anna", "answer_start": 0}]
    (tmp_path / "asked.json").write_text(json.dumps(content))
    found = prepared(tmp_path / "asked.json", QUESTIONS)
    assert found.examples.labels == ("answer", "no answer")


@pytest.mark.parametrize(
    "cell",
    [
        {"text": ["Novak"], "answer_start": [5]},
        [{"text": "Novak", "answer_start": 5}],
        ["Novak"],
        "Novak",
    ],
)
def test_answers_may_be_written_in_four_ways(tmp_path: Path, cell: Any) -> None:
    path = tmp_path / "asked.jsonl"
    row = {"question": "Who?", "context": CONTEXT, "answers": cell}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "context": f"{CONTEXT} x"}))
    for question in annotations(prepared(path, QUESTIONS).examples):
        assert question.answers == (Answer("Novak", 5),)


def test_a_row_an_annotator_becomes_one_question_with_all_of_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    asked = {"question": "Who led it?", "context": CONTEXT}
    rows = [json.dumps({**asked, "answers": answer}) for answer in ("Novak", "Anna Novak", "Novak")]
    path.write_text(
        "\n".join([*rows, json.dumps({**asked, "question": "Who?", "answers": "Novak"})])
    )
    found = prepared(path, QUESTIONS)
    answers = {q.question: [a.text for a in q.answers] for q in annotations(found.examples)}
    assert answers == {"Who led it?": ["Novak", "Anna Novak"], "Who?": ["Novak"]}
    assert messages(found)["answers-joined"] == (
        "2 texts ask what another asks of the same context; their answers were joined"
    )


def test_whether_there_is_an_answer_is_a_conflict_and_equal_rows_are_copies(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    given = [
        ("Who?", "Novak"),
        ("Who?", None),
        ("When?", "1950"),
        ("When?", "1950"),
        ("Led?", None),
    ]
    path.write_text(
        "\n".join(json.dumps({"question": q, "context": CONTEXT, "answers": a}) for q, a in given)
    )
    found = prepared(path, QUESTIONS)
    assert sorted(q.question for q in annotations(found.examples)) == ["Led?", "When?", "When?"]
    assert {"label-conflict", "duplicates"} <= messages(found).keys()


def test_a_wrong_start_is_moved_to_the_nearest_occurrence_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "asked.json"
    path.write_text(
        squad(
            ("Who led it?", [{"text": "Novak", "answer_start": 30}]),
            ("Who founded it?", [{"text": "Novak", "answer_start": 5}]),
        )
    )
    found = prepared(path, QUESTIONS)
    starts = {q.question: q.answers[0].start for q in annotations(found.examples)}
    assert starts == {"Who led it?": 32, "Who founded it?": 5}
    assert messages(found)["answer-start"].startswith("1 texts have answers that do not stand")


def test_questions_without_their_answer_are_left_out_or_too_many(tmp_path: Path) -> None:
    path = tmp_path / "asked.json"
    good = [(f"Who {i}?", [{"text": "Novak", "answer_start": 5}]) for i in range(9)]
    path.write_text(squad(*good, ("Bad?", [{"text": "Borg", "answer_start": 3}])))
    found = prepared(path, QUESTIONS, bad_fraction=0.2)
    assert messages(found)["answer-absent"] == (
        "1 of 10 texts do not contain their answers and are left out"
    )
    assert len(found.examples) == 9
    with pytest.raises(DataError, match=r"1 of 10 texts .* more than data.bad_fraction 0.05"):
        prepared(path, QUESTIONS, bad_fraction=0.05)


def test_all_questions_on_a_context_stay_in_one_split_and_shared_contexts_are_told(
    tmp_path: Path,
) -> None:
    asked = [(f"Who {i}?", [{"text": "Novak", "answer_start": 5}]) for i in range(5)]
    paragraphs = []
    for number in range(20):
        content = json.loads(squad(*asked, context=f"{CONTEXT} Page {number} ."))
        paragraphs += content["data"][0]["paragraphs"]
    path = tmp_path / "asked.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    found = prepared(path, QUESTIONS)
    sides: dict[str, set[str]] = {}
    for split in ("train", "validation"):
        for row in found.examples.indices(split):  # type: ignore[arg-type]
            sides.setdefault(found.examples.annotation(int(row)).context, set()).add(split)
    assert {len(found_in) for found_in in sides.values()} == {1}
    assert "shared-context" not in messages(found)

    paragraphs[0]["qas"] = [{"question": "Other?", "answers": asked[0][1]}]
    (tmp_path / "test.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs[:1]}]}))
    found = prepared(path, QUESTIONS, test=str(tmp_path / "test.json"))
    assert messages(found)["shared-context"].startswith("1 contexts of validation or test are in")


@pytest.mark.parametrize(
    ("name", "content", "task", "told"),
    [
        ("a.json", '{"questions": []}', QUESTIONS, "no SQuAD file"),
        ("a.json", "nonsense", QUESTIONS, "no SQuAD file"),
        ("a.txt", "nonsense", QUESTIONS, "another format. Give a SQuAD JSON file"),
        ("a.csv", "tokens,tags\n", TAGS, "another format. Give a CoNLL file"),
        ("a.conll", "", TAGS, "is empty. Give a CoNLL file"),
        ("a.conll", "-DOCSTART- O\n", TAGS, "no annotated text in it. Give a CoNLL file"),
        ("a.jsonl", '{"context": "x", "answers": []}', QUESTIONS, "no column is named question"),
    ],
)
def test_what_is_no_such_file_is_refused_with_what_would_be(
    tmp_path: Path, name: str, content: str, task: TaskKind, told: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=told):
        prepared(tmp_path / name, task)


def test_marks_that_would_shift_places_are_replaced_one_for_one(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    context = "\ufeffAnna\x1f Novak \ud800 won"
    row = {"question": "Who\x1f?", "context": context, "answers": "Novak"}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "context": context + " ."}))
    for question in annotations(prepared(path, QUESTIONS).examples):
        start = question.answers[0].start
        assert question.context[start : start + 5] == "Novak"
        assert question.question == "Who ?"
