from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.handler import Handler
from tests.serve.material import served

Call = Callable[..., httpx.Response]


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
