"""When the client tries again, for how long, and when it gives up: no connection needed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import httpx
import pytest

from serve.client.attempts import LONGEST_PAUSE_S, Attempts, Outcome, Pause, Send, retry_after_s
from serve.client.errors import DeadlineError, UnreachableError
from serve.contract import PROBLEM_MEDIA_TYPE

REQUEST = httpx.Request("POST", "http://127.0.0.1/v1/models/m:predict")


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def response(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers, request=REQUEST)


def played(
    outcomes: Sequence[httpx.Response | httpx.TransportError],
    *,
    timeout_s: float = 60.0,
    retries: int = 3,
    each_s: float = 0.0,
) -> tuple[list[Send | Pause], httpx.Response]:
    """What the generator asked for while each attempt took `each_s` and ended in turn as given."""
    clock = Clock()
    steps = Attempts(retries, clock, random.Random(0)).steps(timeout_s)
    asked: list[Send | Pause] = []
    left: Iterator[Outcome] = iter(outcomes)
    outcome: Outcome = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as end:
            assert next(left, None) is None, "it gave up before the script ended"
            return asked, end.value
        asked.append(step)
        clock.now_s += step.seconds if isinstance(step, Pause) else each_s
        outcome = None if isinstance(step, Pause) else next(left)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    asked, last = played([response(status), response(200)])

    assert last.status_code == 200
    assert [type(step) for step in asked] == [Send, Pause, Send]


def test_a_500_that_no_endpoint_wrote_is_tried_again() -> None:
    plain = response(500, **{"Content-Type": "text/plain; charset=utf-8"})
    _, last = played([plain, response(200)])

    assert last.status_code == 200


def test_a_proxy_that_knows_of_no_application_yet_is_asked_again() -> None:
    """What Ray's HAProxy answers in its first seconds, whatever the path."""
    text = "Path '/v1/models/a:predict' not found. Ping http://.../-/routes for available routes."
    early = httpx.Response(404, text=text, request=REQUEST)
    _, last = played([early, response(200)])
    asked, other = played([httpx.Response(404, text="Not Found", request=REQUEST)])

    assert last.status_code == 200
    assert other.status_code == 404
    assert len(asked) == 1


@pytest.mark.parametrize("status", [200, 400, 401, 404, 413, 422, 500, 501])
def test_what_will_be_the_same_is_not_tried_again(status: int) -> None:
    asked, last = played([response(status, **{"Content-Type": PROBLEM_MEDIA_TYPE})])

    assert last.status_code == status
    assert len(asked) == 1


@pytest.mark.parametrize(
    "error", [httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.RemoteProtocolError]
)
def test_a_broken_connection_is_tried_again(error: type[httpx.TransportError]) -> None:
    _, last = played([error("broken", request=REQUEST), response(200)])

    assert last.status_code == 200


def test_retries_are_counted_and_the_last_problem_is_kept() -> None:
    _, last = played([response(503), response(503), response(502)], retries=2)

    assert last.status_code == 502


def test_after_the_last_attempt_a_broken_connection_is_an_error() -> None:
    errors = [httpx.ConnectError("refused", request=REQUEST)] * 3

    with pytest.raises(UnreachableError, match="in 3 attempts: refused"):
        played(errors, retries=2)


def test_pauses_grow_are_drawn_and_have_an_end() -> None:
    many = [response(503)] * 400
    asked, _ = played([*many, response(200)], retries=400, timeout_s=1e6)
    pauses = [step.seconds for step in asked if isinstance(step, Pause)]

    assert max(pauses[:2]) <= 0.4
    assert LONGEST_PAUSE_S * 0.9 < max(pauses) <= LONGEST_PAUSE_S
    assert min(pauses[10:]) < LONGEST_PAUSE_S * 0.1  # full jitter starts at zero
    assert len(set(pauses)) == len(pauses)


def test_retry_after_is_the_least_pause() -> None:
    asked, _ = played([response(503, **{"Retry-After": "7"}), response(200)])

    assert asked[1] == Pause(7.0)


def test_no_attempt_has_more_time_than_is_left() -> None:
    asked, _ = played([response(503, **{"Retry-After": "2"}), response(200)], each_s=3.0)

    assert asked == [Send(60.0), Pause(2.0), Send(55.0)]


def test_a_pause_that_would_outlast_the_time_is_not_begun() -> None:
    asked, last = played([response(503, **{"Retry-After": "90"})], timeout_s=30.0)

    assert last.status_code == 503
    assert len(asked) == 1


def test_an_answer_that_comes_too_late_is_not_asked_for_again() -> None:
    with pytest.raises(DeadlineError, match=r"no answer within 5 s, in 1 attempt$"):
        played([httpx.ReadTimeout("slow", request=REQUEST)], timeout_s=5.0)


def test_a_time_that_is_over_before_it_begins_sends_nothing() -> None:
    with pytest.raises(DeadlineError, match="in 0 attempts"):
        played([], timeout_s=0.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("", 0.0),
        ("soon", 0.0),
        ("-4", 0.0),
        ("9" * 400, 0.0),
        ("Wed, 21 Oct 2026 07:28:10 GMT", 10.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_endpoints_clock(text: str, seconds: float) -> None:
    told = response(503, **{"Retry-After": text, "Date": "Wed, 21 Oct 2026 07:28:00 GMT"})

    assert retry_after_s(told) == seconds
