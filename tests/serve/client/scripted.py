"""A real HTTP server that answers as a script says, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Reply:
    """One scripted answer; `None` for a status closes the connection without a byte.

    Attributes:
        pause_s: Before each byte of the body.
    """

    status: int | None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0


@dataclass(frozen=True)
class Received:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Endpoint:
    """Where the server is, and what it was asked."""

    url: str
    received: list[Received] = field(default_factory=list)


@contextmanager
def scripted(replies: Sequence[Reply]) -> Iterator[Endpoint]:
    """A server that gives `replies` in turn, the last one again and again."""
    endpoint = Endpoint("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            endpoint.received.append(
                Received(self.command, self.path, dict(self.headers.items()), body)
            )
            reply = replies[min(len(endpoint.received), len(replies)) - 1]
            if reply.status is None:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if not reply.pause_s:
                self.wfile.write(reply.body)
                return
            with contextlib.suppress(OSError):  # the client has had enough
                for byte in reply.body:
                    time.sleep(reply.pause_s)
                    self.wfile.write(bytes([byte]))

        do_GET = do_POST = _answer  # noqa: N815 (names that http.server looks for)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
