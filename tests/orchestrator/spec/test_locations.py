"""Local paths become absolute; URIs and hub ids are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.locations import absolute


def test_a_local_path_is_relative_to_the_base(tmp_path: Path) -> None:
    assert absolute("a/../b", tmp_path) == str(tmp_path.resolve() / "b")
    assert absolute("/a/b", tmp_path) == "/a/b"
    assert absolute("~/b", tmp_path) == str(Path.home().resolve() / "b")


@pytest.mark.parametrize("location", ["s3://bucket/a", "gs://b/../c", "hub:owner/name"])
def test_what_is_no_local_path_is_untouched(location: str, tmp_path: Path) -> None:
    assert absolute(location, tmp_path) == location


@pytest.mark.parametrize("location", ["~no-such-user/a", "a\0b", "\ud800"])
def test_what_cannot_be_a_path_is_a_spec_error(location: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no path"):
        absolute(location, tmp_path)
