"""When to send, how long to wait, when to give up: retries as a dialogue without a connection.

Whoever has a connection, blocking or not, drives the same generator: it sends when told `Send`,
sleeps when told `Pause`, and says what came of it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import httpx

from ..contract import PROBLEM_MEDIA_TYPE
from .errors import DeadlineError, UnreachableError

CONNECT_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
TRY_AGAIN = frozenset({429, 502, 503, 504})
_NO_ROUTE = b"/-/routes"  # where Ray's 404 sends the reader

# A connection that did not come about, or that ended without an answer: predicting twice does no
# harm. A reply that came too late is not among them: by then the time is over.
_BROKEN = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.CloseError,
    httpx.RemoteProtocolError,
)


@dataclass(frozen=True)
class Send:
    """Send the request now; its response must be whole in `timeout_s`."""

    timeout_s: float


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


Outcome = httpx.Response | httpx.TransportError | None


@dataclass(frozen=True)
class Attempts:
    """How often a call is tried within its time.

    The pause before attempt n is drawn evenly from 0 to `FIRST_PAUSE_S` · 2ⁿ ("full jitter":
    clients that failed together do not come back together), or what the endpoint's Retry-After
    asks for where that is longer.
    """

    retries: int
    clock: Callable[[], float]
    rng: random.Random = field(default_factory=random.Random)

    def steps(self, timeout_s: float) -> Generator[Send | Pause, Outcome, httpx.Response]:
        """What to do next, until there is a response to read.

        Raises:
            DeadlineError: The time is over, or would be before the next attempt.
            UnreachableError: The last attempt found no connection, or a broken one.
        """
        end_s = self.clock() + timeout_s
        attempt = 0
        while True:
            left_s = end_s - self.clock()
            if left_s <= 0:
                raise _too_late(timeout_s, attempt)
            outcome = yield Send(left_s)
            attempt += 1
            assert outcome is not None
            pause_s = self._pause_s(attempt, outcome)
            in_vain = self.clock() + pause_s >= end_s
            if not _may_pass(outcome) or in_vain or attempt > self.retries:
                return _response(outcome, attempt, timeout_s)
            yield Pause(pause_s)

    def _pause_s(self, attempt: int, outcome: httpx.Response | httpx.TransportError) -> float:
        most_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
        asked_s = retry_after_s(outcome) if isinstance(outcome, httpx.Response) else 0.0
        return max(self.rng.uniform(0, most_s), asked_s)


def retry_after_s(response: httpx.Response) -> float:
    """How long the endpoint asks to wait; 0 where it does not, or not readably.

    A date is read against the endpoint's own clock, so that a wrong one here does not matter.
    """
    text = response.headers.get("Retry-After", "").strip()
    try:
        if text[:1].isdigit():
            asked_s = float(text)
            return asked_s if math.isfinite(asked_s) else 0.0
        wanted = parsedate_to_datetime(text)
        now = parsedate_to_datetime(response.headers.get("Date", ""))
        return max(0.0, (wanted - now).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _may_pass(outcome: httpx.Response | httpx.TransportError) -> bool:
    """Whether the same request may do better later.

    A 404 or 500 without a problem document may be none of the endpoint's: Ray's proxy answers so
    before it has been told of any application, and where the replica died with the request in hand.
    """
    if not isinstance(outcome, httpx.Response):
        return isinstance(outcome, _BROKEN)
    if outcome.headers.get("Content-Type", "").startswith(PROBLEM_MEDIA_TYPE):
        return outcome.status_code in TRY_AGAIN
    no_route = outcome.status_code == 404 and _NO_ROUTE in outcome.content
    return no_route or outcome.status_code in {500, *TRY_AGAIN}


def _response(
    outcome: httpx.Response | httpx.TransportError, attempt: int, timeout_s: float
) -> httpx.Response:
    """The last response, whatever it says; an error where there is none."""
    if isinstance(outcome, httpx.Response):
        return outcome
    if isinstance(outcome, httpx.TimeoutException) and not isinstance(outcome, _BROKEN):
        raise _too_late(timeout_s, attempt) from outcome
    reason = str(outcome) or type(outcome).__name__
    raise UnreachableError(f"no answer in {_tries(attempt)}: {reason}") from outcome


def _too_late(timeout_s: float, attempt: int) -> DeadlineError:
    return DeadlineError(f"no answer within {timeout_s:g} s, in {_tries(attempt)}")


def _tries(attempt: int) -> str:
    return f"{attempt} attempt{'' if attempt == 1 else 's'}"
