"""Reaching MLflow: which addresses it may have, a quiet client, and one writer at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import RegistryError

_SQLITE = "sqlite:///"
_SQLITE_HEAD = b"SQLite format 3\x00"

# Read by MLflow when it is imported or used; whoever set one keeps it.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def checked_uri(uri: str) -> str:
    """`uri` if MLflow can be reached by it; a SQLite path is made absolute.

    Raises:
        RegistryError: If it is of another kind.
    """
    if uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE)
        if not path or path == ":memory:" or "?" in path:
            raise RegistryError(f"registry: {uri!r} names no file. Use sqlite:///PATH/mlflow.db")
        return f"{_SQLITE}{Path(path).absolute()}"
    if urlsplit(uri).scheme in ("http", "https") and urlsplit(uri).hostname:
        return uri.rstrip("/")
    raise RegistryError(
        f"registry: {shown_uri(uri)!r} is not supported. Use sqlite:///PATH or http(s)://HOST"
    )


def shown_uri(uri: str) -> str:
    """`uri` without user and password, for messages; otherwise letter for letter."""
    netloc = urlsplit(uri).netloc
    return uri.replace(netloc, netloc.rpartition("@")[2], 1) if netloc else uri


def sqlite_file(uri: str) -> Path | None:
    """The file behind a SQLite address; None for a server."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifact_root(uri: str) -> str | None:
    """Where artifacts go: beside a SQLite file, else where the server puts them.

    MLflow's own default for SQLite is `mlruns` in the working directory, which differs between
    the processes that share the file.
    """
    file = sqlite_file(uri)
    return (file.parent / "mlartifacts").as_uri() if file else None


@contextmanager
def reached(uri: str) -> Iterator[None]:
    """Turn what MLflow and the network raise in the block into a RegistryError."""
    _quieten()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as err:
        reason = str(err).replace(uri, shown_uri(uri))  # MLflow repeats the address, password too
        raise RegistryError(f"registry {shown_uri(uri)}: {reason}") from err


def connect(uri: str) -> Any:
    """An MlflowClient for tracking and registry at `uri`; a SQLite file is created when new."""
    _quieten()
    _refuse_foreign_file(uri)
    from mlflow import MlflowClient

    with one_writer(uri):  # MLflow does not guard the creation of its tables
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_registered_models(max_results=1)
    return client


def _quieten() -> None:
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)


def _refuse_foreign_file(uri: str) -> None:
    """MLflow would retry for 100 seconds to open a file that is no database."""
    file = sqlite_file(uri)
    if file is None or not file.exists():
        return
    with file.open("rb") as opened:
        head = opened.read(len(_SQLITE_HEAD))
    if head not in (b"", _SQLITE_HEAD):
        raise RegistryError(f"registry: {file} is not a SQLite database. Give MLflow's own file")


@contextmanager
def one_writer(uri: str) -> Iterator[None]:
    """Hold the lock beside a SQLite file; a server orders its writers itself.

    SQLite refuses at once, without waiting, a transaction that read before another one wrote.
    """
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
