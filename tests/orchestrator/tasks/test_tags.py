"""Every scheme of tags becomes IOB2, and what does not follow is counted."""

from __future__ import annotations

import pytest
from seqeval.scheme import IOB2, IOBES, Entities

from orchestrator.tasks.tags import TagError, as_iob2, kinds_of, scheme_of

IOB2_TAGS = ["B-PER", "I-PER", "B-PER", "O", "B-LOC", "I-LOC", "I-LOC", "O", "B-ORG"]
WRITTEN = {
    "IOB1": ["I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-LOC", "I-LOC", "O", "I-ORG"],
    "IOB2": IOB2_TAGS,
    "BIOES": ["B-PER", "E-PER", "S-PER", "O", "B-LOC", "I-LOC", "E-LOC", "O", "S-ORG"],
}


@pytest.mark.parametrize("scheme", WRITTEN)
def test_a_corpus_in_any_scheme_becomes_iob2(scheme: str) -> None:
    tags = WRITTEN[scheme]
    found = scheme_of([tags, ["O"]])
    assert found == scheme
    assert as_iob2(tags, found) == (tuple(IOB2_TAGS), 0)


def test_bilou_is_bioes_by_other_letters() -> None:
    tags = ["B-PER", "L-PER", "U-PER", "O"]
    assert as_iob2(tags, scheme_of([tags])) == (("B-PER", "I-PER", "B-PER", "O"), 0)


def test_bare_kinds_are_one_entity_as_long_as_they_stay() -> None:
    tags = ["PER", "PER", "LOC", "O", "LOC"]
    assert scheme_of([tags]) == "IO"
    assert as_iob2(tags, "IO") == (("B-PER", "I-PER", "B-LOC", "O", "B-LOC"), 0)


@pytest.mark.parametrize(
    ("tags", "repaired", "invalid"),
    [
        (["B-PER", "I-LOC", "O"], ("B-PER", "B-LOC", "O"), 1),
        (["O", "I-PER", "I-PER"], ("O", "B-PER", "I-PER"), 1),
        (["I-PER", "O", "I-LOC"], ("B-PER", "O", "B-LOC"), 2),
    ],
)
def test_what_goes_on_with_nothing_begins_and_is_counted(
    tags: list[str], repaired: tuple[str, ...], invalid: int
) -> None:
    assert as_iob2(tags, "IOB2") == (repaired, invalid)


def test_an_ended_entity_of_bioes_cannot_go_on() -> None:
    assert as_iob2(["S-PER", "I-PER", "E-PER"], "BIOES") == (("B-PER", "B-PER", "I-PER"), 1)


def test_entities_are_those_that_seqeval_reads_in_the_scheme_itself() -> None:
    def spans(tags: list[str], scheme: type) -> set[tuple[str, int, int]]:
        (entities,) = Entities([tags], scheme=scheme).entities
        return {(e.tag, e.start, e.end) for e in entities}

    tags, _ = as_iob2(WRITTEN["BIOES"], "BIOES")
    assert spans(list(tags), IOB2) == spans(WRITTEN["BIOES"], IOBES)


def test_numbers_and_nothing_are_no_tags() -> None:
    for tag in ("3", ""):
        with pytest.raises(TagError, match="Write names"):
            scheme_of([["O", tag]])


def test_kinds_are_named_once_and_may_have_dashes() -> None:
    assert kinds_of(["B-x-y", "I-x-y", "O", "B-A"]) == ("A", "x-y")
