"""CoNLL files: which column is what, where a sentence ends, and what is no CoNLL file."""

from __future__ import annotations

import pytest

from orchestrator.data.conll import parse_conll
from orchestrator.errors import DataError


def test_the_first_column_is_the_word_and_the_last_its_tag() -> None:
    text = (
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n"
        "Peter NNP B-NP B-PER\nBlackburn NNP I-NP I-PER"
    )
    assert list(parse_conll(text, "x")) == [
        (["EU", "rejects"], ["B-ORG", "O"]),
        (["Peter", "Blackburn"], ["B-PER", "I-PER"]),
    ]


def test_tabs_keep_spaces_within_words_and_windows_line_ends_are_lines() -> None:
    text = "New York\tB-LOC\r\nis\tO\r\n\r\nbig\tO\r\n"
    assert list(parse_conll(text, "x")) == [
        (["New York", "is"], ["B-LOC", "O"]),
        (["big"], ["O"]),
    ]


def test_white_space_that_is_neither_space_nor_tab_belongs_to_the_word() -> None:
    text = "10\u00a0000 B-NUM\na\u2028b O\r\u00a0\rc\x85d O\n"
    assert list(parse_conll(text, "x")) == [
        (["10\u00a0000", "a\u2028b"], ["B-NUM", "O"]),
        (["c\x85d"], ["O"]),
    ]


def test_comments_before_a_sentence_are_left_out_and_a_hash_is_a_word() -> None:
    text = "# sent_id = 1\n# text = It is\nIt O\n\n# id 5628 domain=train\n# O\n1 B-RANK\n"
    assert list(parse_conll(text, "x")) == [(["It"], ["O"]), (["#", "1"], ["O", "B-RANK"])]


@pytest.mark.parametrize("line", ["alone", "1 2 3 4 5"])
def test_another_number_of_columns_is_named_by_its_line(line: str) -> None:
    with pytest.raises(DataError, match=r"names.conll, line 2: \d columns, where"):
        list(parse_conll(f"EU B-ORG\n{line}\n", "names.conll"))
