from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from serve.handler import Handler
from tests.serve.material import served

Call = Callable[..., httpx.Response]


@contextmanager
def running(handler: Handler) -> Iterator[int]:
    """The port of a server for the length of the block."""
    config = uvicorn.Config(handler, port=0, log_level="warning", lifespan="on", ws="none")  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


async def ask(handler: Handler, method: str, path: str, **options: Any) -> httpx.Response:
    """One request, straight to the application."""
    transport = httpx.ASGITransport(app=handler)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
        return await client.request(method, path, **options)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Handler:
    """The application with everything as it is by default."""
    return served(tmp_path_factory.mktemp("served"))


@pytest.fixture
def call(plain: Handler) -> Call:
    """A request to `plain`."""

    def send(method: str, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(ask(options.pop("to", plain), method, path, **options))

    return send


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Handler]:
    """An application with some things otherwise."""

    def build(**options: Any) -> Handler:
        return served(tmp_path / "served", **options)

    return build
