from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from serve.keys import read_keys

KEY = "a-key-of-thirty-characters-000"


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_holds_a_key_a_line_and_only_digests_leave_it(tmp_path: Path) -> None:
    file = written(tmp_path / "keys", f"# ours\nann {KEY}\n\nbob {KEY}b # his\n")
    assert read_keys(file) == {
        "ann": hashlib.sha256(KEY.encode()).hexdigest(),
        "bob": hashlib.sha256(f"{KEY}b".encode()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no key"),
        (f"{KEY}", "1 words"),
        (f"ann {KEY} x", "3 words"),
        (f"ann {KEY[:19]}", "has 19 characters"),
        (f"ann {KEY}ü", "characters"),
        (f"{KEY}! {KEY}", "the first word is no name"),
        (f"ann {KEY}\nann {KEY}1", "a second key"),
    ],
)
def test_a_wrong_file_is_refused_and_no_key_is_told(tmp_path: Path, text: str, told: str) -> None:
    file = written(tmp_path / "keys", text)
    with pytest.raises(SpecError, match=told) as caught:
        read_keys(file)
    assert KEY[:10] not in str(caught.value)


def test_a_file_that_others_can_read_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="chmod 600"):
        read_keys(written(tmp_path / "keys", f"ann {KEY}", 0o640))
    with pytest.raises(SpecError, match="No such file"):
        read_keys(tmp_path / "none")
