"""The cluster that endpoints run on: started here, found where it was started, or joined."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.errors import OrchestratorError, SpecError

# A dead proxy is noticed after three failed checks: half a minute at Serve's own ten seconds.
PROXY_SETTINGS = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1"}

# The handler never holds the event loop up, so that it can share the replica's own.
PLAIN_SETTINGS = {
    **PROXY_SETTINGS,
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}

# What a person's shell may have set would open the endpoint to every machine, without a key.
CLOSED_SETTINGS = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}

# HAProxy sends straight to the replicas. It binds every interface, and so do they: keys and limits
# are the replica's own. Predicting twice does no harm, so what a dying replica left unanswered is
# sent to another. HAProxy can send again what it held whole when it first sent it: it waits for the
# body, as far as that fits its buffer. That is of 16 KiB by default, and of 1 MiB costs a request
# half a millisecond.
_REQUEST_S = 15  # for the head of a request, and for its body as far as HAProxy waits for it
EXPOSED_SETTINGS = {
    **PROXY_SETTINGS,
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Ray has no setting for the last two, and copies this one into HAProxy's `defaults` as it is.
    "RAY_SERVE_HAPROXY_RETRY_ON": "\n    ".join(
        (
            "conn-failure empty-response",
            "option http-buffer-request",
            f"timeout http-request {_REQUEST_S}s",
        )
    ),
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(256 << 10),
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
}


@dataclass(frozen=True)
class Running:
    """An endpoint that a command on this machine started."""

    address: str
    pid: int
    port: int


def set_environment(address: str | None, *, expose: bool = False) -> None:
    """How Serve of a cluster that is started here behaves; before Ray is imported.

    Args:
        address: Of a cluster that somebody else started, whose settings are theirs.
        expose: Whether a new cluster gets HAProxy; else it has none, whatever is set.
    """
    settings = EXPOSED_SETTINGS if expose else PLAIN_SETTINGS
    if address is None and _token().is_file():
        settings = {**settings, "RAY_AUTH_MODE": "token"}
    os.environ.update({k: v for k, v in settings.items() if k not in os.environ})
    if address is None and not expose:
        os.environ.update(CLOSED_SETTINGS)


@contextmanager
def serving_cluster(
    address: str | None, *, port: int, folder: Path | None = None
) -> Iterator[Running | None]:
    """A joined cluster for the length of the block.

    Args:
        address: As `ray.init` takes it; None for the one of an earlier command that serves at this
            port of this machine, or else a new one.
        port: Of the endpoint.
        folder: Where commands tell each other what they started; in the user's cache when None.

    Yields:
        What this command has started; None where it joined.

    Raises:
        OrchestratorError: The address does not answer.
        SpecError: Something else listens at the port.
    """
    note = (folder or _notes()) / f"{port}.json"
    earlier = None if address else found(note)
    if address is None and earlier is None:
        _refuse_taken(port)
        with _initialized(None) as gcs:
            running = Running(gcs, os.getpid(), port)
            note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            note.write_text(json.dumps(asdict(running)))
            try:
                yield running
            finally:
                note.unlink(missing_ok=True)
        return
    with _initialized(address or (earlier.address if earlier else None)):
        yield None


def found(note: Path) -> Running | None:
    """What an earlier command noted, if it still runs."""
    try:
        running = Running(**json.loads(note.read_text()))
        os.kill(running.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return running


def earlier_endpoint(port: int) -> Running | None:
    """What an earlier command on this machine serves at a port."""
    return found(_notes() / f"{port}.json")


@contextmanager
def _initialized(address: str | None) -> Iterator[str]:
    import logging

    import ray

    try:
        ray.init(
            address=address or "local",  # a new one, whatever $RAY_ADDRESS says
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as err:
        raise OrchestratorError(
            f"no Ray cluster answers at {address or 'this machine'}: {err}"
        ) from err
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if _token().is_file():
        _token().chmod(0o600)
    try:
        yield str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as err:
            raise SpecError(
                f"--port: something listens at {port} already ({err.strerror}). Choose another, or "
                "give --address where it is this endpoint on a cluster"
            ) from err


def _notes() -> Path:
    from orchestrator.bundle.cache import default_cache

    return default_cache().parent / "endpoints"


def _token() -> Path:
    return Path.home() / ".ray" / "auth_token"
