"""Two versions behind one name: a canary answers its share, a shadow only answers beside."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field
from typing import Any

from . import metrics
from .bodies import Body
from .endpoint import Answered, Endpoint, Verb
from .entry import Entry
from .metrics import Metrics
from .problems import Refusal

_LOG = logging.getLogger("transfer_orchestrator.serve")

COMPARED_AT_ONCE = 4  # comparisons beyond these are left out: they must not crowd requests out


@dataclass
class SplitEndpoint:
    """Answers with one version, or with a candidate for a share of the requests.

    What the candidate answers is compared with what the other version does. A candidate that
    fails costs no request its answer: the other version gives it.

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
        if self.share == 0:
            answered = await self.current.ask(verb, body)
            if verb == "predict":
                self._compare(answered, self.candidate, body)
            return answered
        if verb != "predict" or self.rng.random() >= self.share:
            return await self.current.ask(verb, body)
        try:
            answered = await self.candidate.ask(verb, body)
        except Refusal as refused:
            if refused.status < 500 or refused.slug == "overloaded":
                raise
            return await self._instead(verb, body)
        except Exception:  # noqa: BLE001  (a candidate's failure must not reach the client)
            _LOG.exception("the candidate of %s failed", self.entry.name)
            return await self._instead(verb, body)
        self._compare(answered, self.current, body)
        return answered

    async def probe(self) -> None:
        await self.current.probe()
        await self.candidate.probe()

    async def settled(self) -> None:
        """Wait for the comparisons that run."""
        await asyncio.gather(*self._comparing, return_exceptions=True)

    async def _instead(self, verb: Verb, body: Body) -> Answered:
        self._count("failed")
        return await self.current.ask(verb, body)

    def _compare(self, answered: Answered, other: Endpoint, body: Body) -> None:
        if len(self._comparing) >= COMPARED_AT_ONCE:
            self._count("skipped")
            return
        task = asyncio.get_running_loop().create_task(self._compared(answered, other, body))
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def _compared(self, answered: Answered, other: Endpoint, body: Body) -> None:
        try:
            beside = await other.ask("predict", body)
        except Refusal as refused:
            self._count("skipped" if refused.slug == "overloaded" else "failed")
        except Exception:  # noqa: BLE001  (a candidate's failure must not reach the client)
            _LOG.exception("no comparison of %s", self.entry.name)
            self._count("failed")
        else:
            pairs = zip(answered.content["answers"], beside.content["answers"], strict=True)
            for one, two in pairs:
                self._count("same" if _gist(one) == _gist(two) else "different")

    def _count(self, outcome: str) -> None:
        self.counted.add(
            metrics.COMPARED,
            model=self.entry.name,
            version=self.current.entry.version,
            candidate=self.candidate.entry.version,
            outcome=outcome,
        )


def _gist(answer: dict[str, Any]) -> Any:
    """What two versions must agree in; their probabilities may differ."""
    if "error" in answer:
        return answer["error"].get("type")
    if "entities" in answer:
        return [(e["label"], e["start"], e["end"]) for e in answer["entities"]]
    if "labels" in answer:
        return sorted(answer["labels"])
    return answer.get("label", answer.get("answer"))


def report(split: SplitEndpoint, total: metrics.Snapshot) -> dict[str, Any]:
    """How both versions did, as `GET /v1/models/NAME` tells it."""
    name, identity = split.entry.name, split.candidate.entry.identity
    compared = {
        outcome: metrics.total_of(
            total, metrics.COMPARED, model=name, candidate=identity.version, outcome=outcome
        )
        for outcome in ("same", "different", "failed", "skipped")
    }
    judged = compared["same"] + compared["different"]
    return {
        "version": identity.version,
        "alias": identity.alias,
        "digest": identity.digest,
        "mode": split.mode,
        "share": split.share,
        "compared": {key: int(value) for key, value in compared.items()},
        "agreement": round(compared["same"] / judged, 4) if judged else None,
        "versions": {
            version: _served(total, name, version)
            for version in (split.entry.version, identity.version)
        },
    }


def _served(total: metrics.Snapshot, name: str, version: str) -> dict[str, Any]:
    which = {"model": name, "version": version}
    requests = metrics.total_of(total, metrics.REQUESTS, **which)
    failed = metrics.total_of(total, metrics.REQUESTS, outcome="failed", **which)
    seconds = metrics.total_of(total, f"{metrics.SECONDS}_sum", **which)
    return {
        "requests": int(requests),
        "errors": int(failed),
        "mean_ms": round(1000 * seconds / requests, 2) if requests else None,
    }
