"""The HTTP interface as one ASGI application: routes, keys, deadlines, problems. No Ray in it."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.bundle.reference import NAME_RULE
from orchestrator.errors import listing, nearest

from . import inference_protocol, metrics
from .access_log import log_access
from .bodies import ClientGone, Receive
from .endpoint import Answered, Endpoint, Verb
from .exchange import Exchange, Reply, Scope, Send, json_reply, problem_reply
from .keys import Keys
from .limits import Limits
from .metrics import Metrics, Snapshot, outcome_of
from .problems import Refusal, brief, not_ready
from .split import SplitEndpoint, report
from .worker import Room

# A client that comes back at once, whatever Retry-After says, takes time from those that are being
# answered. It can do so only as often as it is told that it is refused.
HELD_BACK_S = 0.5

_LOG = logging.getLogger("transfer_orchestrator.serve")

_NAME = NAME_RULE.removeprefix("^").removesuffix("$")
_VERBS: dict[str, Verb] = {"predict": "predict", "embed": "embed", "explain": "explain"}

Action = Callable[["Handler", Exchange, re.Match[str]], Awaitable[Reply]]


@dataclass(frozen=True)
class Route:
    """What is at a path.

    Attributes:
        path: Matches the whole of it.
        actions: By method.
        open: Whether it is told without a key.
    """

    path: re.Pattern[str]
    actions: Mapping[str, Action]
    open: bool = False


class Handler:
    """Answers HTTP requests with endpoints.

    Args:
        endpoints: By name.
        limits: On requests.
        keys: Of which each request must carry one.
        counted: Where requests are counted.
        total: The counts of all replicas; this one's own when None.
        routes: More of them, before these.
        tells_id: Whether answers name their request in `x-request-id`; Ray Serve adds its own.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        *,
        limits: Limits,
        keys: Keys,
        counted: Metrics | None = None,
        total: Callable[[], Awaitable[Snapshot]] | None = None,
        routes: tuple[Route, ...] = (),
        tells_id: bool = True,
    ) -> None:
        self.endpoints = dict(endpoints)
        self.limits = limits
        self.keys = keys
        self.counted = counted or Metrics()
        self.room = Room(limits.bytes_at_once)
        self._total = total
        self._routes = (*routes, *ROUTES)
        self._tells_id = tells_id
        self._probing: asyncio.Task[dict[str, bool]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        match scope["type"]:
            case "http":
                await self._serve(Exchange(scope, receive, self.limits, self.room), send)
            case "lifespan":
                await _live(receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, exchange: Exchange, send: Send) -> None:
        try:
            reply = await self._reply(exchange)
        except ClientGone:
            self._account(exchange, metrics.GONE)
            return
        except asyncio.CancelledError:  # the server noticed that the client has gone
            self._account(exchange, metrics.GONE)
            raise
        self._account(exchange, reply.status)
        await exchange.respond(send, reply, tells_id=self._tells_id)

    async def _reply(self, exchange: Exchange) -> Reply:
        """The answer or the problem; nothing that fails here fails the server."""
        try:
            async with asyncio.timeout(self.limits.answer_s):
                return await self._route(exchange)
        except Refusal as refused:
            if refused.slug == "overloaded":
                await asyncio.sleep(HELD_BACK_S)
            return problem_reply(refused, exchange)
        except TimeoutError:
            late = f"There was no answer within {self.limits.answer_s:g} s. Send fewer inputs"
            return problem_reply(Refusal("deadline", late), exchange)
        except ClientGone:
            raise
        except Exception:  # noqa: BLE001  (logged; the client gets no more than the request's id)
            _LOG.exception("request %s failed", exchange.id)
            failed = Refusal("internal", "The server's log has the reason under the request's id")
            return problem_reply(failed, exchange)

    async def _route(self, exchange: Exchange) -> Reply:
        for route in self._routes:
            if matched := route.path.fullmatch(exchange.path):
                if not route.open:
                    exchange.key = self.keys.check(exchange.headers)
                method = "GET" if exchange.method == "HEAD" else exchange.method
                if method not in route.actions:
                    raise _no_method(exchange, route)
                return await route.actions[method](self, exchange, matched)
        exchange.key = self.keys.check(exchange.headers)
        raise Refusal("unknown-path", f"{brief(exchange.path)}. See /docs, or /v1/models")

    def endpoint(self, exchange: Exchange, name: str) -> Endpoint:
        """The endpoint of a name.

        Raises:
            Refusal: There is none.
        """
        found = self.endpoints.get(name)
        if found is None:
            served = sorted(self.endpoints)
            raise Refusal(
                "unknown-model",
                f"{brief(name)} is not served, only {listing(served)}.{nearest(name, served)}",
            )
        exchange.model, exchange.version = name, found.entry.version
        return found

    def version(self, exchange: Exchange, name: str, version: str | None) -> Endpoint:
        """The endpoint of a name, or of one of its versions where one is named.

        Raises:
            Refusal: There is none.
        """
        found = self.endpoint(exchange, name)
        if version is None:
            return found
        versions = served_versions(found)
        if version not in versions:
            raise Refusal(
                "unknown-model",
                f"{name} is not served in version {brief(version)}, only {listing(versions)}. "
                "Leave the version out, or name one of these",
            )
        exchange.version = version
        return versions[version]

    async def ask(self, exchange: Exchange, endpoint: Endpoint, verb: Verb) -> Answered:
        """What an endpoint answers to the body of a request."""
        name = endpoint.entry.name
        exchange.asks = True
        with self.counted.in_flight(name), self.room.held() as take:
            answered = await endpoint.ask(verb, await exchange.body(take))
        exchange.version = answered.by.version
        exchange.n_items, exchange.n_refused = answered.n_items, answered.n_refused
        return answered

    async def ready(self) -> dict[str, bool]:
        """Whether each model answers its probe; who asks while they are probed waits for these."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probed())
        return await asyncio.shield(self._probing)

    async def _probed(self) -> dict[str, bool]:
        return {name: await _is_well(one) for name, one in self.endpoints.items()}

    async def snapshot(self) -> Snapshot:
        """What all replicas have counted."""
        return self.counted.snapshot() if self._total is None else await self._total()

    def _account(self, exchange: Exchange, status: int) -> None:
        log_access(exchange, status)
        if not exchange.asks:
            return
        assert exchange.model is not None, "asked no model"
        assert exchange.version is not None, "asked no version"
        which = {"model": exchange.model, "version": exchange.version}
        partly = status == 200 and exchange.n_refused > 0
        self.counted.add(
            metrics.REQUESTS, outcome="partial" if partly else outcome_of(status), **which
        )
        if exchange.n_items:
            good = exchange.n_items - exchange.n_refused
            self.counted.add(metrics.ITEMS, good, outcome="ok", **which)
            self.counted.add(metrics.ITEMS, exchange.n_refused, outcome="refused", **which)
        self.counted.observe(metrics.SECONDS, time.perf_counter() - exchange.started_s, **which)


# What is at each path.


async def _models(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    return json_reply({"models": [one.entry.summary for one in handler.endpoints.values()]})


async def _model(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    endpoint = handler.endpoint(exchange, path["name"])
    details = endpoint.entry.details
    if isinstance(endpoint, SplitEndpoint):
        details = {**details, "candidate": report(endpoint, await handler.snapshot())}
    return json_reply(details)


async def _ask(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    endpoint = handler.endpoint(exchange, path["name"])
    answered = await handler.ask(exchange, endpoint, _VERBS[path["verb"]])
    by = answered.by
    timing = _timing_ms(exchange, answered)
    return json_reply(
        {
            "model": by.name,
            "version": by.version,
            "alias": by.alias,
            "digest": by.digest,
            **answered.content,
            "timing_ms": timing,
        },
        X_Model_Version=by.version,
        Server_Timing=_server_timing(timing),
    )


def served_versions(endpoint: Endpoint) -> dict[str, Endpoint]:
    """Each version behind an endpoint by its name, the trusted one first."""
    if isinstance(endpoint, SplitEndpoint):
        both = (endpoint.candidate, endpoint.current)
        found: dict[str, Endpoint] = {one.entry.version: one for one in both}
        return dict(reversed(found.items()))
    return {endpoint.entry.version: endpoint}


def _timing_ms(exchange: Exchange, answered: Answered) -> dict[str, float]:
    seconds = {
        "read": exchange.read_s,
        "queue": answered.queued_s,
        "infer": answered.ran_s,
        "total": time.perf_counter() - exchange.started_s,
    }
    return {name: round(1000 * value, 2) for name, value in seconds.items()}


def _server_timing(timing_ms: Mapping[str, float]) -> str:
    return ", ".join(f"{name};dur={ms}" for name, ms in timing_ms.items())


async def _alive(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    return json_reply({"alive": True})


async def _ready(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    ready = await handler.ready()
    if not all(ready.values()):
        raise not_ready([name for name, well in ready.items() if not well])
    return json_reply({"ready": True, "models": ready})


async def _is_well(endpoint: Endpoint) -> bool:
    try:
        await endpoint.probe()
    except Exception:  # noqa: BLE001  (whatever it is, it is not ready)
        _LOG.exception("%s does not answer its probe", endpoint.entry.name)
        return False
    return True


async def _metrics(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    text = metrics.rendered(await handler.snapshot())
    return Reply(text.encode(), media=metrics.MEDIA_TYPE)


async def _v2_server(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    return json_reply(inference_protocol.server())


async def _v2_live(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    return json_reply({"live": True})


async def _v2_model(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    versions = served_versions(handler.endpoint(exchange, path["name"]))
    entry = handler.version(exchange, path["name"], path["version"]).entry
    return json_reply(inference_protocol.metadata(entry, versions=list(versions)))


async def _v2_model_ready(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    endpoint = handler.version(exchange, path["name"], path["version"])
    if not await _is_well(endpoint):
        raise not_ready([endpoint.entry.name])
    return json_reply({"name": endpoint.entry.name, "ready": True})


async def _v2_infer(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    endpoint = handler.version(exchange, path["name"], path["version"])
    answered = await handler.ask(exchange, endpoint, "infer")
    return json_reply(
        answered.content,
        X_Model_Version=answered.by.version,
        Server_Timing=_server_timing(_timing_ms(exchange, answered)),
    )


def _route(path: str, *, open: bool = False, **actions: Action) -> Route:
    return Route(re.compile(path), actions, open)


_MODEL = f"(?P<name>{_NAME})"
_V2_MODEL = f"/v2/models/(?P<name>{_NAME})(/versions/(?P<version>[0-9A-Za-z]+))?"

ROUTES = (
    _route(f"/v1/models/{_MODEL}:(?P<verb>{'|'.join(_VERBS)})", POST=_ask),
    _route(f"{_V2_MODEL}/infer", POST=_v2_infer),
    _route("/healthz", open=True, GET=_alive),
    _route("/readyz", open=True, GET=_ready),
    _route("/metrics", GET=_metrics),
    _route("/v1/models", GET=_models),
    _route(f"/v1/models/{_MODEL}", GET=_model),
    _route("/v2", GET=_v2_server),
    _route("/v2/health/live", open=True, GET=_v2_live),
    _route("/v2/health/ready", open=True, GET=_ready),
    _route(f"{_V2_MODEL}/ready", GET=_v2_model_ready),
    _route(_V2_MODEL, GET=_v2_model),
)


def _no_method(exchange: Exchange, route: Route) -> Refusal:
    allowed = ", ".join(sorted({*route.actions, *(["HEAD"] if "GET" in route.actions else [])}))
    return Refusal(
        "method",
        f"{brief(exchange.method)} is not taken at {brief(exchange.path)}, only {allowed}",
        {"Allow": allowed},
    )


async def _live(receive: Receive, send: Send) -> None:
    """The lifespan of an application that has nothing to start and nothing to end."""
    while True:
        message: Any = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
