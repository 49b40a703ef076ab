"""The Ray Serve application: `serve.app:build_app`, its deployments, and how it is run.

`serve deploy` and RayService build it from YAML; `orchestrator deploy` from its arguments.
"""

# Ray reads the type of the builder's argument from its annotation, which must not be a string:
# no `from __future__ import annotations` here.

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import APIType, ApplicationStatus

from orchestrator.bundle.latency import target_ongoing_requests
from orchestrator.errors import OrchestratorError, SpecError
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.release import release

from .addresses import Address, is_loopback
from .changing import changing
from .contract import Accepts
from .entry import accepts_of
from .keys import read_keys
from .limits import Limits
from .loading import Model
from .pinning import fetched, pinned
from .replica import Ingress, OwnModel, Served
from .settings import AppSettings, CandidateSettings, EndpointSettings
from .tally import tally

__all__ = [
    "APP",
    "AppSettings",
    "CandidateSettings",
    "EndpointSettings",
    "Limits",
    "UnknownSettingsError",
    "accepted_by",
    "build_app",
    "changing",
    "pinned_endpoint",
    "pinned_settings",
    "read_keys",
    "run_app",
    "running_settings",
    "stop_app",
    "stop_serve",
]

APP = "orchestrator"

# Ray's own limit on requests in a replica lies above the handler's: a client that sends slowly
# holds a place, and what is refused should be refused with a reason.
_CONNECTIONS = 1000
_DRAIN_S = 60.0
_START_PATIENCE_S = 300.0
_HAPROXY = "HAProxyManager"  # the class of Ray's actor


class UnknownSettingsError(SpecError):
    """An application runs that cannot be changed, since nobody remembers what it serves."""


def build_app(settings: AppSettings) -> Application:
    """The application that serves these endpoints, each pinned to one bundle from here on.

    Raises:
        BundleError: A folder is no bundle.
        IntegrityError: Files are not those that were written or registered.
        RegistryError: A reference leads nowhere.
        SpecError: The file of keys is unusable.
    """
    keys = {} if settings.keys_file is None else read_keys(settings.keys_file)
    served = tuple(_served(endpoint, settings) for endpoint in settings.endpoints)
    at_once = settings.threads_of(*settings.shared)
    told = [(one.model, one.candidate, one.share, one.sleeps, bool(one.handle)) for one in served]
    deployment = _deployment(
        Ingress,
        "ingress",
        version=_version_of(told, settings.limits, keys, at_once),
        actor={"num_cpus": settings.cpus},
        scale=_scale(
            settings.min_replicas,
            settings.max_replicas,
            target=min(
                (_target(one.model, settings, at_once) for one in served if one.handle is None),
                default=1,
            ),
        ),
    )
    return deployment.bind(served, settings.limits, keys, at_once)


def accepted_by(endpoint: EndpointSettings) -> Accepts:
    """What an endpoint's inputs are."""
    pin = pinned(endpoint.bundle, name=endpoint.name, registry=endpoint.registry)
    return accepts_of(fetched(pin).task.kind)


def pinned_settings(settings: AppSettings) -> AppSettings:
    """The same settings with every reference replaced by the version that it means now.

    They mean the same in every folder: paths and registries are absolute.
    """
    return settings.model_copy(
        update={"endpoints": tuple(map(pinned_endpoint, settings.endpoints))}
    )


def pinned_endpoint(one: EndpointSettings) -> EndpointSettings:
    """The same endpoint at the versions that its references mean now."""
    pin = pinned(one.bundle, name=one.name, registry=one.registry)
    fixed: dict[str, Any] = {
        "bundle": pin.bundle,
        "alias": one.alias or pin.alias,
        "registry": pin.registry,
    }
    if one.candidate is not None:
        second = pinned(one.candidate.bundle, name=one.name, registry=one.registry)
        fixed["candidate"] = one.candidate.model_copy(update={"bundle": second.bundle})
        fixed["registry"] = pin.registry or second.registry
    return one.model_copy(update=fixed)


def run_app(
    settings: AppSettings, *, at: Address, patience_s: float = _START_PATIENCE_S
) -> Address:
    """Run the application on the joined cluster, or roll the one that runs there to these settings.

    Returns when every replica has answered its probe. Replicas that would be as they are go on.

    Args:
        settings: What to serve.
        at: Where to listen, unless Serve runs already.
        patience_s: For all replicas to start; those of a cluster that grows wait for machines.

    Returns:
        Where it listens.

    Raises:
        OrchestratorError: A replica does not start. What ran before goes on; where nothing did,
            nothing does.
        SpecError: Without keys, everyone who reaches the cluster could ask; or Serve runs already,
            and is not reached from elsewhere, as `at` wants it.
    """
    application = build_app(settings)
    serve.start(proxy_location="HeadOnly", http_options={"host": at.host, "port": at.port})
    listens = _listens()
    if is_loopback(listens.host) and not is_loopback(at.host):
        raise SpecError(
            f"the endpoint runs already and listens at {listens.host}, which no other machine "
            "reaches. That is decided when it starts: end it with `orchestrator undeploy`, then "
            "deploy again"
        )
    if settings.keys_file is None:
        _refuse_open(listens)
    undo = _undoing()
    try:
        _roll(application, settings)
        _wait_until_running(patience_s)
    except BaseException as failure:  # Ctrl-C too
        try:
            undo()
        except OrchestratorError as err:
            raise OrchestratorError(f"{failure}. {err}") from failure
        raise
    return listens


def _listens() -> Address:
    """Where Serve of the joined cluster does."""
    client: Any = _get_global_client()
    return Address(client.http_config.host, client.http_config.port)


def _refuse_open(listens: Address) -> None:
    """Refuse to serve without keys what other machines reach."""
    why = None if is_loopback(listens.host) else f"listens at {listens.host}"
    if _binds_every_interface():
        why = "runs behind HAProxy, which binds every interface"
    if why is not None:
        raise SpecError(
            f"Serve of this cluster {why}: everyone could ask. Give the keys that may: --keys FILE"
        )


def _roll(application: Application, settings: AppSettings) -> None:
    """Make the application what is to run, and its settings what is known; nothing is waited for.

    Whoever is killed after this has rolled it: Serve goes on, and the next command knows of it.
    """
    ray.get(tally().remember.remote(settings.model_dump_json()))
    target = serve.RunTarget(
        application, name=APP, route_prefix="/", logging_config={"enable_access_log": False}
    )
    serve.run_many([target], wait_for_applications_running=False)


def _undoing() -> Callable[[], None]:
    """What leads back to what runs now.

    Serve leaves the replicas of a version alone whose successor fails, but starts none of it any
    more: it has to be told that the earlier version is wanted again.
    """
    try:
        before = running_settings()
    except UnknownSettingsError:
        return lambda: None
    if before is None:
        return partial(serve.delete, APP)
    try:
        application = build_app(before)
    except OrchestratorError as err:
        return partial(_lost, err)
    return lambda: _roll(application, before)


def _lost(why: OrchestratorError) -> None:
    raise OrchestratorError(f"What was served until now cannot be started again either: {why}")


def _wait_until_running(patience_s: float) -> None:
    """Wait for every replica; one that is ill is replaced, and waited for as the others are."""
    deadline_s = time.monotonic() + patience_s
    while True:
        app = serve.status().applications.get(APP)
        if app is not None and app.status == ApplicationStatus.RUNNING:
            return
        failed = app is not None and app.status == ApplicationStatus.DEPLOY_FAILED
        if failed or time.monotonic() > deadline_s:
            told = [] if app is None else [one.message for one in app.deployments.values()]
            reason = " ".join(filter(None, told)) or (app.message if app else "")
            what = "does not start" if failed else f"has not started in {patience_s:g} s"
            raise OrchestratorError(f"a replica {what}: {reason[-2000:]}")
        time.sleep(0.1)


def running_settings() -> AppSettings | None:
    """The settings of the application that runs on the joined cluster; None where none runs.

    Raises:
        UnknownSettingsError: One runs that `serve deploy` started, or what remembered its settings
            was restarted.
    """
    if APP not in serve.status().applications:
        return None
    kept = None if _is_declared() else ray.get(tally().settings.remote())
    if kept is None:
        raise UnknownSettingsError(
            f"the application {APP!r} runs on this cluster, but not what it serves is known: it "
            "was not started by `orchestrator deploy`, or the actor that remembered has died. "
            "`orchestrator deploy --only NAME…` replaces all of it, its keys too; where a YAML "
            "started it, change that"
        )
    return AppSettings.model_validate_json(kept)


def stop_app() -> None:
    """Let running requests end, then delete our application; others on the cluster go on."""
    counts = tally()
    serve.delete(APP)
    ray.kill(counts)


def stop_serve() -> None:
    """Let running requests end, then stop everything of Serve on the joined cluster."""
    counts = tally()
    serve.shutdown()
    ray.kill(counts)


def _is_declared() -> bool:
    """Whether `serve deploy` or a RayService has deployed the application last."""
    client: Any = _get_global_client()
    details = client.get_serve_details()
    return bool(details["applications"][APP]["source"] == APIType.DECLARATIVE)


def _binds_every_interface() -> bool:
    """Whether HAProxy stands before the replicas: it and they listen everywhere."""
    client: Any = _get_global_client()
    proxies: Any = ray.get(client._controller.get_proxies.remote())
    kinds = [one._ray_actor_creation_function_descriptor.class_name for one in proxies.values()]
    return _HAPROXY in kinds


def _version_of(*arguments: object) -> str:
    """Equal for deployments whose replicas would be: Serve lets those go on that run.

    Arguments are told apart by their `repr`.
    """
    return digest_of([release(), *map(repr, arguments)])


def _deployment(
    kind: type, name: str, *, version: str, actor: dict[str, Any], scale: dict[str, Any]
) -> Deployment:
    decorate: Any = serve.deployment(
        name=name,
        ray_actor_options=actor,
        max_ongoing_requests=_CONNECTIONS,
        max_queued_requests=_CONNECTIONS,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        max_surge_percent=100,  # new replicas answer before old ones stop
        health_check_period_s=2.0,
        health_check_timeout_s=20.0,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=_DRAIN_S,
        max_constructor_retry_count=2,
        **scale,
    )
    made: Any = decorate(kind)
    # Without a version each deployment restarts every replica; the argument is Serve's own.
    found: Deployment = made.options(version=version, _internal=True)
    return found


def _served(endpoint: EndpointSettings, settings: AppSettings) -> Served:
    model = _model(endpoint.bundle, endpoint, settings, alias=endpoint.alias)
    candidate = endpoint.candidate
    second = None if candidate is None else _model(candidate.bundle, endpoint, settings)
    if second is not None and second.pin.digest == model.pin.digest:
        raise SpecError(
            f"{endpoint.name}: {second.pin.bundle} is the bundle that is trusted already, and "
            "cannot prove itself beside itself. Name another version"
        )
    return Served(
        model=model,
        handle=_own(model, endpoint, settings, "") if endpoint.own else None,
        candidate=second,
        candidate_handle=(
            _own(second, endpoint, settings, "-candidate") if endpoint.own and second else None
        ),
        share=candidate.share if candidate else 0.0,
        sleeps=endpoint.min_replicas == 0,
    )


def _model(
    bundle: str, endpoint: EndpointSettings, settings: AppSettings, *, alias: str | None = None
) -> Model:
    pin = pinned(bundle, name=endpoint.name, registry=endpoint.registry)
    return Model(
        pin=pin if alias is None else pin.model_copy(update={"alias": alias}),
        runtime=endpoint.runtime,
        device=endpoint.device,
        threads=settings.threads,
        batch_rows=endpoint.rows_together,
    )


def _own(
    model: Model, endpoint: EndpointSettings, settings: AppSettings, suffix: str
) -> DeploymentHandle[Any]:
    """A deployment of the model's own; Serve puts its handle in the place of what is returned."""
    actor: dict[str, Any] = {"num_cpus": settings.cpus}
    if endpoint.device != "cpu":
        actor["num_gpus"] = settings.gpus
    at_once = settings.threads_of(endpoint)
    deployment = _deployment(
        OwnModel,
        f"{endpoint.name}{suffix}",
        version=_version_of(model, settings.limits, at_once),
        actor=actor,
        scale=_scale(
            endpoint.min_replicas,
            endpoint.max_replicas,
            target=_target(model, settings, at_once),
        ),
    )
    bound: Any = deployment.bind(model, settings.limits, at_once)
    handle: DeploymentHandle[Any] = bound
    return handle


def _target(model: Model, settings: AppSettings, at_once: int) -> int:
    """Requests that a replica should hold before another is added.

    As the bundle's latency curve has it. Without one, or where it is of another device: every
    thread busy and as much again waiting.
    """
    curve = fetched(model.pin).manifest.latency
    if curve is None or model.device != "cpu":
        return 2 * at_once
    batched = model.batch_rows > 1
    target = target_ongoing_requests(
        curve, threads=settings.threads, within_ms=settings.within_ms, batched=batched
    )
    return target if batched else target * at_once


def _scale(least: int, most: int, *, target: int) -> dict[str, Any]:
    """A fixed number of replicas, or one that follows the requests in flight."""
    if least == most:
        return {"num_replicas": least}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            target_ongoing_requests=min(target, _CONNECTIONS // 2),
            upscale_delay_s=5.0,
            downscale_delay_s=120.0,
        )
    }
