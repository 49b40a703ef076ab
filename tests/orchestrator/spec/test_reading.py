"""What people write, as plain data: YAML 1.2 scalars, nothing clever, overrides on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec.reading import MAX_SPEC_BYTES, read_spec_file, read_yaml, with_overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("+3", 3),
        ("12", 12),
        ("010", 10),
        ("08", 8),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        *((word, word) for word in ("no", "No", "yes", "on", "off", "y", "n", "TRUE")),
        *((word, word) for word in ("1_000", "0x1F", "1:30", "2020-01-01", ".inf", ".nan", "<<")),
        ("'12'", "12"),
    ],
)
def test_a_scalar_is_what_it_looks_like(text: str, value: object) -> None:
    read = read_yaml(f"key: {text}")["key"]

    assert read == value
    assert type(read) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**18), 10**18))
def test_a_number_is_read_as_python_writes_it(number: float) -> None:
    read = read_yaml(f"[{number!r}]")[0]

    assert read == number
    assert type(read) is type(number)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: 2\na: 3", 3, "'a' appears twice"),
        ("a:\n  b: {c: 1, c: 2}", 2, "'c' appears twice"),
        ("a: &x 1\nb: *x", 2, "aliases"),
        ("a: 1\nb: !!python/object:os.system ls", 2, "tags"),
        ("a: !!int '3'", 1, "tags"),
        ("a: !!timestamp nonsense", 1, "tags"),
        ("- 1\n- !!set {a, b}", 2, "tags"),
        ("a: !own 1", 1, "tags"),
        ("a: 1e400", 1, "too large"),
        ("a: " + "1" * 5000, 1, "5000 digits"),
    ],
)
def test_what_is_refused_is_named_with_its_line(text: str, line: int, what: str) -> None:
    with pytest.raises(SpecError, match=rf"sweep\.yaml, line {line}: .*{what}"):
        read_yaml(text, source="sweep.yaml")


@pytest.mark.parametrize("text", ["[1", "a: b: c", "? [a]\n: b", "\x00", "a: 1\n---\nb: 2", "%"])
def test_what_is_not_yaml_is_one_spec_error(text: str) -> None:
    with pytest.raises(SpecError, match=r"sweep\.yaml is not YAML"):
        read_yaml(text, source="sweep.yaml")


def test_a_text_nested_without_end_is_refused() -> None:
    with pytest.raises(SpecError, match="nested too deeply"):
        read_yaml("[" * 20_000)


@given(st.text(max_size=60))
def test_any_text_is_data_or_a_spec_error(text: str) -> None:
    try:
        read_yaml(text)
    except SpecError:
        return


def test_a_giant_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "giant.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it whole would not fit into memory

    with pytest.raises(SpecError, match="larger than a spec may be"):
        read_spec_file(path)


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("a: 1\n" + "#" * (MAX_SPEC_BYTES - 5))

    assert read_spec_file(path) == {"a": 1}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: caf\xe9")

    for path, told in (
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "cannot"),
        (latin, "cannot"),
    ):
        with pytest.raises(SpecError, match=f"{path.name}.*{told}"):
            read_spec_file(path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=new", {"name": "new", "search": [{"epochs": 1}, {}]}),
        ("search.0.epochs=3", {"name": "a", "search": [{"epochs": 3}, {}]}),
        ("search[1].lr=1e-4", {"name": "a", "search": [{"epochs": 1}, {"lr": 1e-4}]}),
        ("budget.trials=4", {"name": "a", "search": [{"epochs": 1}, {}], "budget": {"trials": 4}}),
        ("search=[]", {"name": "a", "search": []}),
        ("name=", {"name": None, "search": [{"epochs": 1}, {}]}),
        ("name=a=b", {"name": "a=b", "search": [{"epochs": 1}, {}]}),
        ("name={log: [1, 2]}", {"name": {"log": [1, 2]}, "search": [{"epochs": 1}, {}]}),
    ],
)
def test_an_override_replaces_one_value(override: str, expected: dict[str, Any]) -> None:
    written = {"name": "a", "search": [{"epochs": 1}, {}]}

    assert with_overrides(written, [override]) == expected
    assert written == {"name": "a", "search": [{"epochs": 1}, {}]}, "the original is left alone"


def test_a_later_override_wins() -> None:
    assert with_overrides({}, ["a.b=1", "a.b=no"]) == {"a": {"b": "no"}}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("budget.trials", "expected key=value"),
        ("=4", "expected key=value"),
        ("a..b=1", "empty part"),
        ("search.2.epochs=1", "Use 0 to 1"),
        ("search.-1.epochs=1", "Use 0 to 1"),
        ("search.².epochs=1", "Use 0 to 1"),
        ("search.x.epochs=1", "Use 0 to 1"),
        ("none.0=1", "The list is empty"),
        ("name.x=1", "has no parts"),
        ("name=[1", "is not YAML"),
        ("name=!!set {a}", "tags"),
    ],
)
def test_an_impossible_override_is_named(override: str, told: str) -> None:
    written = {"name": "a", "search": [{"epochs": 1}, {}], "none": []}

    with pytest.raises(SpecError, match="--set") as caught:
        with_overrides(written, [override])
    assert told in str(caught.value)
