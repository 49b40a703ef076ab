"""Two versions behind one name: a canary answers its share, a shadow only answers beside."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from . import metrics
from .bodies import Body
from .endpoint import PREDICTING, Answered, Endpoint, Verb
from .entry import Entry
from .metrics import Metrics
from .problems import Refusal

_LOG = logging.getLogger("transfer_orchestrator.serve")

COMPARED_AT_ONCE = 4  # comparisons beyond these are left out: they must not crowd requests out

# Of the time that an answer may take: the body may have taken half, and the version that answers
# in the candidate's place needs some too.
CANDIDATE_FRACTION = 0.3

Agreement = Literal["same", "different"]  # of one answer
# Of a request: the candidate gave no answer; or nothing was compared, for another reason.
Uncompared = Literal["failed", "skipped"]


@dataclass
class SplitEndpoint:
    """Answers with one version, or with a candidate for a share of the requests.

    What the candidate answers is compared with what the other version does. A candidate that
    fails, refuses, is overloaded or takes too long costs no request its answer: the other version
    gives it.

    Attributes:
        current: The version that is trusted.
        candidate: The one that is to prove itself.
        share: Of requests that the candidate answers; with 0 it only answers beside.
        counted: Where comparisons are counted.
        rng: Draws who answers.
    """

    current: Endpoint
    candidate: Endpoint
    share: float
    counted: Metrics
    rng: random.Random = field(default_factory=random.Random)
    _comparing: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    @property
    def entry(self) -> Entry:
        """Of the version that is trusted."""
        return self.current.entry

    @property
    def mode(self) -> str:
        """`canary` or `shadow`."""
        return "canary" if self.share > 0 else "shadow"

    async def ask(self, verb: Verb, body: Body) -> Answered:
        if verb not in PREDICTING:
            return await self.current.ask(verb, body)
        if self.share == 0:
            answered = await self._timed(self.current, verb, body)
            self._later(self._shadowed(answered, verb, body))
            return answered
        if self.rng.random() >= self.share:
            return await self._timed(self.current, verb, body)
        outcome = await self._of_candidate(verb, body, CANDIDATE_FRACTION)
        if isinstance(outcome, Answered):
            self._later(self._checked(outcome, verb, body))
            return outcome
        answered = await self._timed(self.current, verb, body)  # or the client's own fault
        self._count(metrics.UNCOMPARED, outcome)
        return answered

    async def probe(self) -> None:
        """Of the version that is trusted: a candidate that fails costs nobody an answer."""
        await self.current.probe()

    async def settled(self) -> None:
        """Wait for the comparisons that run."""
        await asyncio.gather(*self._comparing, return_exceptions=True)

    async def _of_candidate(self, verb: Verb, body: Body, fraction: float) -> Answered | Uncompared:
        """The candidate's answer, or what is counted in its place.

        Args:
            verb: As `Endpoint.ask` has it.
            body: The same.
            fraction: Of the time that an answer may take, that the candidate has.
        """
        try:
            async with asyncio.timeout(self.entry.limits.answer_s * fraction):
                answered = await self._timed(self.candidate, verb, body)
        except Refusal as refused:
            return "skipped" if refused.slug == "overloaded" else "failed"
        except TimeoutError:
            return "failed"
        except Exception:  # noqa: BLE001  (a candidate's failure must not reach the client)
            _LOG.exception("the candidate of %s failed", self.entry.name)
            return "failed"
        return "failed" if answered.n_failed else answered

    async def _shadowed(self, answered: Answered, verb: Verb, body: Body) -> None:
        """Compare the candidate with the answer that the client was given."""
        outcome = await self._of_candidate(verb, body, 1.0)
        if isinstance(outcome, Answered):
            self._compare(answered, outcome)
        else:
            self._count(metrics.UNCOMPARED, outcome)

    async def _checked(self, answered: Answered, verb: Verb, body: Body) -> None:
        """Compare the candidate's answer, which the client was given, with the trusted one."""
        try:
            async with asyncio.timeout(self.entry.limits.answer_s):
                trusted = await self._timed(self.current, verb, body)
        except Refusal as refused:
            if refused.status >= 500:
                self._count(metrics.UNCOMPARED, "skipped")
            else:
                self._count(metrics.COMPARED, "different", answered.n_items)
        except Exception:  # noqa: BLE001  (nobody waits for it, and it is not the candidate's)
            _LOG.exception("the trusted version of %s failed beside its candidate", self.entry.name)
            self._count(metrics.UNCOMPARED, "skipped")
        else:
            self._compare(trusted, answered)

    async def _timed(self, endpoint: Endpoint, verb: Verb, body: Body) -> Answered:
        started_s = time.perf_counter()
        answered = await endpoint.ask(verb, body)
        self.counted.observe(
            metrics.VERSION_SECONDS,
            time.perf_counter() - started_s,
            model=self.entry.name,
            version=endpoint.entry.version,
        )
        return answered

    def _later(self, comparison: Coroutine[Any, Any, None]) -> None:
        if len(self._comparing) >= COMPARED_AT_ONCE:
            comparison.close()
            self._count(metrics.UNCOMPARED, "skipped")
            return
        task = asyncio.get_running_loop().create_task(comparison)
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    def _compare(self, one: Answered, other: Answered) -> None:
        for a, b in zip(one.gists, other.gists, strict=True):
            self._count(metrics.COMPARED, "same" if a == b else "different")

    def _count(self, what: str, outcome: Agreement | Uncompared, n: int = 1) -> None:
        self.counted.add(
            what,
            n,
            model=self.entry.name,
            version=self.current.entry.version,
            candidate=self.candidate.entry.version,
            outcome=outcome,
        )


def report(split: SplitEndpoint, total: metrics.Snapshot) -> dict[str, Any]:
    """How both versions did, as `GET /v1/models/NAME` tells it."""
    name, identity = split.entry.name, split.candidate.entry.identity

    def counts(what: str, outcomes: tuple[str, ...]) -> dict[str, int]:
        which = {"model": name, "candidate": identity.version}
        return {one: int(metrics.total_of(total, what, outcome=one, **which)) for one in outcomes}

    compared = counts(metrics.COMPARED, get_args(Agreement))
    uncompared = counts(metrics.UNCOMPARED, get_args(Uncompared))
    judged = sum(compared.values())
    return {
        "version": identity.version,
        "alias": identity.alias,
        "digest": identity.digest,
        "mode": split.mode,
        "share": split.share,
        "compared": compared,
        "uncompared": uncompared,
        "agreement": round(compared["same"] / judged, 4) if judged else None,
        "versions": {
            split.entry.version: _served(total, name, split.entry.version),
            identity.version: _served(total, name, identity.version, failed=uncompared["failed"]),
        },
    }


def _served(total: metrics.Snapshot, name: str, version: str, *, failed: int = 0) -> dict[str, Any]:
    """What one version did; `failed` requests of it were answered by the other."""
    which = {"model": name, "version": version}
    errors = metrics.total_of(total, metrics.REQUESTS, outcome="failed", **which)
    answers = metrics.total_of(total, f"{metrics.VERSION_SECONDS}_count", **which)
    seconds = metrics.total_of(total, f"{metrics.VERSION_SECONDS}_sum", **which)
    return {
        "requests": int(metrics.total_of(total, metrics.REQUESTS, **which)),
        "errors": int(errors) + failed,
        "mean_ms": round(1000 * seconds / answers, 2) if answers else None,
    }
