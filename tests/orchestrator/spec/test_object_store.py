"""What cannot be reached is told with the URI, the driver's words and what to do; soon or later."""

from __future__ import annotations

import sys
from typing import Any

import fsspec
import pytest

from orchestrator.errors import SpecError, StorageError
from orchestrator.spec import object_store
from orchestrator.spec.mirror import open_storage
from orchestrator.spec.object_store import TRIES, Stored, checked_uri
from tests.object_storage import CREDENTIALS


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("s3:///runs", "no folder"),
        ("s3://bucket//runs", "no folder"),
        ("s3://bucket/../runs", "no folder"),
        ("s3://bucket/runs.tmp/new", "no folder"),
        ("s3://bucket/runs?version=1", "no URI"),
        ("memory://runs", "not shared"),
        ("file:///mnt/runs", "not shared"),
        ("s4://bucket/runs", r"Did you mean 's3://'"),
        ("s3://key:secret@bucket/runs", "holds a password"),
    ],
)
def test_a_uri_that_no_cluster_can_share_is_refused(uri: str, told: str) -> None:
    with pytest.raises(SpecError, match=told) as caught:
        checked_uri(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("s3://bucket/runs/", "s3://bucket/runs"),
        ("gs://bucket", "gs://bucket"),
        ("abfs://container@account.dfs.core.windows.net/runs",) * 2,
    ],
)
def test_a_uri_is_named_without_the_slash_at_its_end(uri: str, named: str) -> None:
    assert checked_uri(uri) == named


def test_a_bucket_that_is_not_there_is_told_at_once(storage_uri: str) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket/runs: there is no such bucket"):
        open_storage("s3://no-such-bucket/runs")


@pytest.fixture
def fresh_drivers() -> Any:
    """Drivers that read the environment anew, before the test and after it."""

    def forget() -> None:
        object_store._driver.cache_clear()
        fsspec.get_filesystem_class("s3").clear_instance_cache()

    forget()
    yield
    forget()


def test_a_store_that_does_not_answer_is_told(
    storage_uri: str, fresh_drivers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    with pytest.raises(StorageError, match=r"cannot be reached \(.*127\.0\.0\.1:9.*\)\. Check"):
        open_storage(storage_uri)


def test_credentials_that_are_lacking_are_asked_for(
    storage_uri: str, fresh_drivers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(StorageError, match=r"access is refused .* Give the driver"):
        open_storage(storage_uri)


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SpecError, match=r"pip install 'transfer-orchestrator\[gcs\]'"):
        open_storage("gs://bucket/runs")


@pytest.mark.parametrize("failures", [1, TRIES - 1, TRIES])
def test_what_fails_is_tried_again_and_then_told(
    storage_uri: str, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    stored = Stored(f"{storage_uri}/a")
    driver, calls = stored.driver, []

    class Faltering:
        def pipe_file(self, *words: Any, **options: Any) -> None:
            calls.append(words)
            if len(calls) <= failures:
                raise TimeoutError("no answer")
            driver.pipe_file(*words, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(driver, name)

    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(Stored, "driver", property(lambda self: Faltering()))
    if failures < TRIES:
        stored.write(b"1")
        assert stored.read() == b"1"
    else:
        with pytest.raises(StorageError, match="no answer"):
            stored.write(b"1")
        assert stored.read() is None
