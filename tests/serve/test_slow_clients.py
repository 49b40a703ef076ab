"""Over a real connection: clients that send too much, too slowly, or not to the end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from serve.handler import Handler
from serve.limits import Limits
from tests.serve.conftest import running
from tests.serve.material import image_file

RED = image_file((250, 10, 10))
HEAD = "POST /v1/models/colours:predict HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n"


@pytest.fixture
def port(make: Callable[..., Handler]) -> Iterator[int]:
    with running(make(limits=Limits(body_bytes=1 << 20, read_s=0.5))) as found:
        yield found


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    while part := connection.recv(65_536):
        found += part
    return found


def test_a_dribbling_client_is_told_and_cut_while_others_are_answered(port: int) -> None:
    dribblers = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(50)]
    started_s = time.perf_counter()
    for one in dribblers:
        one.sendall(HEAD.format(1000).encode() + b"x")
    url = f"http://127.0.0.1:{port}/v1/models/colours:predict"
    assert httpx.post(url, content=RED).json()["answers"][0]["label"] == "red"
    for one in dribblers:
        answer = received(one)
        assert answer.startswith(b"HTTP/1.1 408 "), answer[:100]
        assert b"/problems/slow-body" in answer
        one.close()
    assert time.perf_counter() - started_s < 5


def test_a_gigabyte_is_refused_before_it_is_sent(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(HEAD.format(1 << 30).encode())
        assert b"/problems/too-long" in received(connection)


def test_a_client_that_sends_all_of_a_body_that_is_too_long_still_reads_why(port: int) -> None:
    url = f"http://127.0.0.1:{port}/v1/models/colours:predict"
    answer = httpx.post(url, content=b"x" * (3 << 19))
    assert answer.status_code == 413
    assert answer.json()["type"] == "/problems/too-long"


def test_an_endless_body_is_cut_off(port: int) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = HEAD.replace("Content-Length: {}", "Transfer-Encoding: chunked")
        connection.sendall(head.encode())
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        try:
            while sent < 1 << 30:
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
    # The limit, as much again while lingering, and what the kernel's buffers hold.
    assert sent < 20 << 20


def test_a_client_that_leaves_in_the_middle_harms_nobody(port: int) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(HEAD.format(1000).encode() + b"x" * 100)
    url = f"http://127.0.0.1:{port}"
    assert httpx.post(f"{url}/v1/models/colours:predict", content=RED).status_code == 200
    text = httpx.get(f"{url}/metrics").text
    assert 'orchestrator_requests_in_flight{model="colours"} 0' in text


def test_hostile_heads_are_refused_and_harm_nobody(port: int) -> None:
    heads = [
        b"POST /v1/models/colours:predict HTTP/1.1\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/models/colours:predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/models/colours:predict HTTP/1.1\r\nContent-Length: 1\r\n"
        b"Content-Length: 2\r\n\r\nx",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"\x00\x01" + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET /%ff%fe/../.. HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ]
    for head in heads:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
            try:
                status = received(connection)[9:12]
            except ConnectionError:
                continue
            assert not status or status.startswith(b"4"), (head[:60], status)
    assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
