from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.cache import BundleCache
from orchestrator.errors import IntegrityError


def copier(source: Path, log: list[Path]) -> Callable[[Path], Path]:
    def download(folder: Path) -> Path:
        log.append(folder)
        return Path(shutil.copytree(source, folder / "got"))

    return download


def test_a_bundle_is_downloaded_once(plain: Bundle, tmp_path: Path) -> None:
    cache, log = BundleCache(tmp_path / "cache"), []
    first = cache.get(plain.digest, copier(plain.path, log))
    assert cache.get(plain.digest, copier(plain.path, log)) == first
    assert len(log) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [plain.digest]


def test_a_damaged_copy_is_downloaded_again(plain: Bundle, tmp_path: Path) -> None:
    cache, log = BundleCache(tmp_path / "cache"), []
    folder = cache.get(plain.digest, copier(plain.path, log))
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert cache.get(plain.digest, copier(plain.path, log)) == folder
    assert len(log) == 2
    assert (folder / "model.safetensors").read_bytes() == b"w" * 1000


def test_another_bundle_than_asked_for_is_refused_and_not_kept(
    plain: Bundle, write_plain, tmp_path: Path
) -> None:
    other = write_plain(tmp_path / "other", weights=b"others")
    with pytest.raises(IntegrityError, match=other.digest[:12]):
        BundleCache(tmp_path / "cache").get(plain.digest, copier(other.path, []))
    assert list((tmp_path / "cache").iterdir()) == []


def test_when_another_process_was_faster_its_copy_is_used(plain: Bundle, tmp_path: Path) -> None:
    cache = BundleCache(tmp_path / "cache")

    def overtaken(folder: Path) -> Path:
        cache.get(plain.digest, copier(plain.path, []))
        return copier(plain.path, [])(folder)

    assert cache.get(plain.digest, overtaken) == tmp_path / "cache" / plain.digest
