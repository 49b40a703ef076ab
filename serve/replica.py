"""What runs inside Ray Serve's replicas: the ingress with its models, and models of their own."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from orchestrator.bundle.drift import Drift

from . import access_log, metrics
from .bodies import Body
from .endpoint import Answered, Endpoint, LocalEndpoint, Verb
from .entry import Entry, Identity
from .handler import Handler
from .keys import Keys
from .limits import Limits
from .loading import Model, loaded
from .metrics import Metrics, Snapshot
from .pages import PAGES
from .pinning import entry_of, fetched
from .problems import Refusal, overloaded
from .split import SplitEndpoint
from .tally import tally
from .worker import Worker

PROBED_AT_ONCE = 8


@dataclass(frozen=True)
class Served:
    """One name, and where its versions are answered: here, or behind a handle.

    Attributes:
        model: The version that is trusted.
        candidate: The one that is to prove itself.
        share: Of requests that the candidate answers.
        sleeps: Whether its own deployment may have no replica, which a probe must not wake.
    """

    model: Model
    handle: DeploymentHandle[Any] | None = None
    candidate: Model | None = None
    candidate_handle: DeploymentHandle[Any] | None = None
    share: float = 0.0
    sleeps: bool = False

    def trusted_here(self) -> Model | None:
        """The trusted version where the ingress's own replicas hold it."""
        return self.model if self.handle is None else None

    def candidate_here(self) -> Model | None:
        """The candidate where they do."""
        return self.candidate if self.candidate_handle is None else None


@dataclass(frozen=True)
class RemoteEndpoint:
    """A model in a deployment of its own.

    Attributes:
        entry: What is told about it; its answers name their version themselves.
        handle: Of the deployment.
        sleeps: As `Served` has it.
    """

    entry: Entry
    handle: DeploymentHandle[Any]
    sleeps: bool

    async def ask(self, verb: Verb, body: Body) -> Answered:
        try:
            found = await self._asked(verb, body)
        except RayActorError:
            found = await self._asked(verb, body)  # the replica died; asking twice does no harm
        if isinstance(found, Refusal):
            raise found
        return found

    async def probe(self) -> None:
        if not self.sleeps:
            await self.handle.check_health.remote()

    async def _asked(self, verb: Verb, body: Body) -> Answered | Refusal:
        response = self.handle.ask.remote(verb, body)
        try:
            found: Answered | Refusal = await response
        except asyncio.CancelledError:  # nobody waits any more: the replica is told
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        except (BackPressureError, DeploymentUnavailableError) as err:
            raise overloaded(f"{self.entry.name} has no replica free") from err
        return found


class Teller:
    """Tells the cluster's tally what this replica has counted and how its inputs drift."""

    def __init__(self, counted: Metrics) -> None:
        self._counted = counted
        self._replica = serve.get_replica_context().replica_tag
        self._tally = tally()

    async def tell(self, endpoints: Iterable[LocalEndpoint], *, last: bool = False) -> Any:
        """The call that tells, which may be awaited and need not be.

        Args:
            endpoints: Whose drift is told; it is computed beside the event loop.
            last: Whether the replica counts no more after this.
        """
        for identity, drift in await asyncio.to_thread(_drifts, list(endpoints)):
            labels = {"model": identity.name, "version": identity.version}
            labels["replica"] = self._replica
            self._counted.set(metrics.DRIFT_SHIFT, drift.shift, **labels)
            self._counted.set(metrics.DRIFT_FAR, drift.far_share, **labels)
        return self._tally.tell.remote(self._replica, self._counted.snapshot(), last=last)

    async def total(self, endpoints: Iterable[LocalEndpoint]) -> Snapshot:
        """What all replicas counted; this one's own where the tally does not answer."""
        try:
            await (await self.tell(endpoints))
            total: Snapshot = await self._tally.total.remote()
        except RayError:
            return self._counted.snapshot()
        return total


def _drifts(endpoints: Iterable[LocalEndpoint]) -> list[tuple[Identity, Drift]]:
    found = []
    for endpoint in endpoints:
        drift = endpoint.watched.drift() if endpoint.watched else None
        if drift is not None:
            found.append((endpoint.entry.identity, drift))
    return found


class OwnModel:
    """A model in a deployment of its own."""

    def __init__(self, model: Model, limits: Limits, at_once: int) -> None:
        _log_to_stdout()
        worker = Worker(threads=at_once, queue=limits.queue)
        self._endpoint = loaded([model], limits=limits, worker=worker)[model]
        self._teller = Teller(Metrics())

    async def ask(self, verb: Verb, body: Body) -> Answered | Refusal:
        """The answer or the problem; a value either way, since errors are wrapped on their way."""
        try:
            return await self._endpoint.ask(verb, body)
        except Refusal as refused:
            return refused

    async def check_health(self) -> None:
        """Predict, or raise; and tell how inputs drift. The ingress counts the requests."""
        await self._teller.tell([self._endpoint])
        await self._endpoint.probe()


@serve.ingress()
class Ingress:
    """The HTTP interface, with every model in it that has no deployment of its own."""

    def __init__(
        self, served: tuple[Served, ...], limits: Limits, keys: Mapping[str, str], at_once: int
    ) -> None:
        _log_to_stdout()
        self._counted = Metrics()
        self._teller = Teller(self._counted)
        here: dict[Model, LocalEndpoint] = {}
        # Candidates share nothing with trusted versions, neither threads nor a trunk to wait for:
        # one that hangs must not hold those up.
        for of_one in (Served.trusted_here, Served.candidate_here):
            models = [model for one in served if (model := of_one(one)) is not None]
            worker = Worker(threads=at_once, queue=limits.queue)
            here |= loaded(models, limits=limits, worker=worker)
        endpoints = {one.model.pin.name: self._endpoint(one, limits, here) for one in served}
        self._handler = Handler(
            endpoints,
            limits=limits,
            keys=Keys(keys),
            counted=self._counted,
            total=self._total,
            routes=PAGES,
            tells_id=False,
        )
        self._endpoints = tuple(endpoints.values())

    def __serve_build_asgi_app__(self) -> Handler:
        """What answers requests; Ray calls it once."""
        return self._handler

    async def check_health(self) -> None:
        """Predict with every trusted model here, or raise; and tell what was counted."""
        await self._teller.tell(_local(self._endpoints))
        trusted = _local(
            one.current if isinstance(one, SplitEndpoint) else one for one in self._endpoints
        )
        # Of many models a few at a time, so that probing all never fills the time between checks.
        for endpoint in sorted(trusted, key=lambda one: one.well_at_s)[:PROBED_AT_ONCE]:
            await endpoint.probe()

    async def __del__(self) -> None:
        """Tell what was counted last; Ray calls it when the replica has answered everything."""
        if hasattr(self, "_endpoints"):
            await (await self._teller.tell(_local(self._endpoints), last=True))

    def _endpoint(
        self, served: Served, limits: Limits, here: Mapping[Model, LocalEndpoint]
    ) -> Endpoint:
        def place(model: Model, handle: DeploymentHandle[Any] | None) -> Endpoint:
            if handle is None:
                return here[model]
            entry = entry_of(model.pin, fetched(model.pin), limits)
            return RemoteEndpoint(entry, handle, served.sleeps)

        current = place(served.model, served.handle)
        if served.candidate is None:
            return current
        candidate = place(served.candidate, served.candidate_handle)
        return SplitEndpoint(current, candidate, served.share, self._counted)

    async def _total(self) -> Snapshot:
        return await self._teller.total(_local(self._endpoints))


def _local(endpoints: Iterable[Endpoint]) -> Iterator[LocalEndpoint]:
    """The models in this process; another deployment looks after its own."""
    for endpoint in endpoints:
        if isinstance(endpoint, SplitEndpoint):
            yield from _local((endpoint.current, endpoint.candidate))
        elif isinstance(endpoint, LocalEndpoint):
            yield endpoint


def _log_to_stdout() -> None:
    """The access log, one JSON line a request, into the worker's log file of the Ray session.

    What parsers say of hostile bytes is left out: the client is told, and could fill the disk.
    """
    for noisy in ("PIL", "python_multipart"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    logger = logging.getLogger(access_log.LOGGER)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
