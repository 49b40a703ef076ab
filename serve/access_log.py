"""One JSON line for each request: who asked for what, how it ended; no key, query or input."""

from __future__ import annotations

import json
import logging
import time

from .exchange import Exchange

LOGGER = "transfer_orchestrator.access"

_LOG = logging.getLogger(LOGGER)
_LONGEST_PATH = 200


def log_access(exchange: Exchange, status: int) -> None:
    """Write the line of one request."""
    if not _LOG.isEnabledFor(logging.INFO):
        return
    line = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request": exchange.id,
        "key": exchange.key,
        "method": exchange.method[:16],
        "path": exchange.path[:_LONGEST_PATH],
        "model": exchange.model,
        "version": exchange.version,
        "status": status,
        "items": exchange.n_items,
        "refused": exchange.n_refused,
        "bytes": exchange.n_bytes,
        "ms": round(1000 * (time.perf_counter() - exchange.started_s), 2),
    }
    _LOG.info("%s", json.dumps(line))
