from __future__ import annotations

import pytest

from orchestrator.bundle.reference import (
    NAME_RULE,
    Reference,
    check_alias,
    check_name,
    parse_reference,
)
from orchestrator.errors import RegistryError

HOSTILE = [
    "",
    ".",
    "..",
    "../a",
    "a/../b",
    "/etc/passwd",
    "%2e%2e%2fa",
    "%252e%252e",
    "a\\b",
    "a\0",
    "a\n",
    "a:$DATA",
    "A",
    "ａ",
    "é",
    "-a",
    "_a",
    " a",
    "a b",
    "a'b",
    "a' OR name LIKE '%",
    "a" * 65,
    "a" * 4096,
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("solar-cells", Reference("solar-cells")),
        ("solar-cells@champion", Reference("solar-cells", alias="champion")),
        ("a.b_c/12", Reference("a.b_c", version=12)),
        ("0", Reference("0")),
        ("a" * 64, Reference("a" * 64)),
    ],
)
def test_a_reference_has_three_forms_and_prints_as_it_was_written(
    text: str, expected: Reference
) -> None:
    assert parse_reference(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_outside_the_rule_is_refused_with_the_rule(name: str) -> None:
    for refuse in (check_name, check_alias):
        with pytest.raises(RegistryError) as caught:
            refuse(name)
        assert NAME_RULE in str(caught.value)
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "text", [*HOSTILE, "a/0", "a/-1", "a/1.5", "a/b", "a/1/2", "a/٣", "a@", "a@b@c", "a/1@b"]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(RegistryError):
        parse_reference(text)


@pytest.mark.parametrize("alias", ["latest", "v1", "v12"])
def test_aliases_to_which_mlflow_gives_a_meaning_are_refused(alias: str) -> None:
    with pytest.raises(RegistryError, match="reserved"):
        check_alias(alias)
