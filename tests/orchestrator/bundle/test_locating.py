from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.locating import locate
from orchestrator.errors import BundleError, IntegrityError, RegistryError


def test_a_folder_is_found_and_verified(plain: Bundle) -> None:
    assert locate(str(plain.path), registry_uri=None) == plain.path
    (plain.path / "extra").touch()
    with pytest.raises(IntegrityError, match="extra"):
        locate(str(plain.path), registry_uri=None)


def test_a_folder_is_taken_before_a_name(plain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plain.path.parent)
    assert locate("plain", registry_uri="sqlite:///never-created.db") == plain.path
    assert not Path("never-created.db").exists()


def test_what_looks_like_a_path_is_never_a_name(tmp_path: Path) -> None:
    for reference in (str(tmp_path), "./nowhere", "~/nowhere/at/all"):
        with pytest.raises(BundleError, match="so it is no bundle"):
            locate(reference, registry_uri=f"sqlite:///{tmp_path}/never.db")


def test_a_name_without_a_registry_says_what_to_give() -> None:
    with pytest.raises(RegistryError, match="no registry was given"):
        locate("cells@champion", registry_uri=None)


def test_what_is_neither_is_refused_with_the_rule() -> None:
    with pytest.raises(RegistryError, match=r"no folder of a bundle.*does not match"):
        locate("Some Folder", registry_uri=None)
