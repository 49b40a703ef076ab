"""One request and its response over ASGI."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

from .bodies import Body, Receive, media_type, read_body
from .contract import PROBLEM_MEDIA_TYPE
from .limits import Limits
from .options import parse_top
from .problems import Refusal, json_bytes
from .worker import Room

Scope = Mapping[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]

LINGER_S = 1.0  # a refused client may go on sending for so long before it is cut off
MOST_PARAMETERS = 64  # in a query

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Reply:
    """A response in whole."""

    body: bytes
    status: int = 200
    media: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def json_reply(value: object, *, status: int = 200, **headers: str) -> Reply:
    """A JSON response; `_` in a header's name stands for `-`."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(json_bytes(value), status, headers=named)


def problem_reply(refused: Refusal, exchange: Exchange) -> Reply:
    """A problem as the response to a whole request."""
    told = refused.document(exchange.id)
    if exchange.path.startswith("/v2/"):
        told["error"] = str(refused)  # where clients of the open inference protocol look
    return Reply(json_bytes(told), refused.status, PROBLEM_MEDIA_TYPE, refused.headers)


@dataclass
class Exchange:
    """A request on its way to its response, and what the access log tells of it.

    Attributes:
        scope: ASGI's.
        receive: ASGI's.
        limits: Kept while reading.
        room: For the bytes of the body.
        started_s: When the request came, on the performance counter.
        key: Name of the key that it carries.
        model: It asks for.
        version: That answered.
        asks: Whether it brings inputs to the model, and is no question about it.
        n_items: Inputs in it.
        n_refused: Those without an answer.
        read_s: The body took to arrive.
        n_bytes: Of the body.
    """

    scope: Scope
    receive: Receive
    limits: Limits
    room: Room
    started_s: float = field(default_factory=time.perf_counter)
    key: str | None = None
    model: str | None = None
    version: str | None = None
    asks: bool = False
    n_items: int = 0
    n_refused: int = 0
    read_s: float = 0.0
    n_bytes: int = 0
    _body_ended: bool = False

    @cached_property
    def headers(self) -> dict[str, str]:
        """Names in lower case; of a header that is there twice, the last."""
        return {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in self.scope["headers"]
        }

    @cached_property
    def id(self) -> str:
        """The client's own name of the request where it is harmless, else a new one."""
        given = self.headers.get("x-request-id", "")
        return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

    @property
    def method(self) -> str:
        """In upper case."""
        return str(self.scope["method"]).upper()

    @property
    def path(self) -> str:
        """Percent-decoded, without the query."""
        return str(self.scope["path"])

    @property
    def query(self) -> dict[str, str]:
        """Its parameters; of one that is there twice, the last.

        Raises:
            Refusal: There are too many.
        """
        text = self.scope.get("query_string", b"")[:4096].decode("latin-1")
        try:
            return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_PARAMETERS))
        except ValueError as err:
            raise Refusal(
                "malformed",
                f"The query has more than {MOST_PARAMETERS} parameters. Only `top` is read: leave "
                "the others out",
            ) from err

    async def body(self, take: Callable[[int], None]) -> Body:
        """The body, read within its limits.

        Args:
            take: Of `Room.held`.
        """
        began_s = time.perf_counter()
        data = await read_body(self.receive, self.headers, limits=self.limits, take=take)
        self._body_ended = True
        self.read_s, self.n_bytes = time.perf_counter() - began_s, len(data)
        media, parameters = media_type(self.headers.get("content-type", ""))
        query = self.query
        top = parse_top(query["top"]) if "top" in query else None
        return Body(media, parameters, data, top)

    async def respond(self, send: Send, reply: Reply, *, tells_id: bool) -> None:
        """Send the response; what of the request is unread is drained for a moment.

        Closing a connection while the client still sends would reset it, and the client would
        never see why it was refused.
        """
        unread = not self._body_ended and self._announces_body()
        headers = [
            (b"content-type", reply.media.encode("latin-1")),
            (b"content-length", str(len(reply.body)).encode()),
            *(
                (name.lower().encode(), text.encode("latin-1"))
                for name, text in reply.headers.items()
            ),
        ]
        if tells_id:
            headers.append((b"x-request-id", self.id.encode()))
        if unread:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body, "more_body": unread})
        if unread:
            await self._drain()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _announces_body(self) -> bool:
        return self.headers.get("content-length", "0") != "0" or (
            "transfer-encoding" in self.headers
        )

    async def _drain(self) -> None:
        left = self.limits.body_bytes
        try:
            async with asyncio.timeout(LINGER_S):
                more = True
                while more and left > 0:
                    message = await self.receive()
                    left -= len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            return
