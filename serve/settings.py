"""What an application serves, as frozen data: the argument of `serve.app:build_app`.

The same document is the `args` of a `serve deploy` YAML and of a RayService.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.bundle.reference import check_name
from orchestrator.errors import RegistryError
from orchestrator.spec.frozen import Frozen
from orchestrator.spec.parts import Runtime

from .limits import Limits

GPU_BATCH_ROWS = 32
Replicas = Annotated[int, Field(ge=0, le=1000)]


class CandidateSettings(Frozen):
    """Another version of a served name, that is to prove itself."""

    bundle: str = Field(description="folder, or `name`, `name/3` or `name@alias`")
    share: float = Field(
        ge=0, le=1, description="of requests that it answers; 0: it only answers beside (shadow)"
    )


class EndpointSettings(Frozen):
    """One name, and the bundle that answers to it."""

    name: str = Field(description="in the path of requests")
    bundle: str = Field(description="folder, or `name`, `name/3` or `name@alias` in the registry")
    registry: str | None = Field(None, description="MLflow's address, for a reference")
    alias: str | None = Field(
        None, description="that led to the bundle, where the reference itself has none any more"
    )
    runtime: Runtime = "auto"
    device: str = "cpu"
    batch_rows: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="inputs of several requests that go through the network together, where they "
        f"are there at once; {GPU_BATCH_ROWS} on a GPU and 1 on CPUs when not given",
    )
    own: bool = Field(
        False, description="a deployment of its own, scaled alone; others share the ingress's"
    )
    min_replicas: Replicas = 1
    max_replicas: Replicas = 1
    candidate: CandidateSettings | None = None

    @property
    def rows_together(self) -> int:
        """Inputs of several requests in one pass, given or not."""
        if self.batch_rows is not None:
            return self.batch_rows
        return 1 if self.device == "cpu" else GPU_BATCH_ROWS

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        try:
            check_name(value)
        except RegistryError as err:
            raise ValueError(str(err)) from err
        return value

    @model_validator(mode="after")
    def _can_be_scaled(self) -> Self:
        if not self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"min_replicas {self.min_replicas} and max_replicas {self.max_replicas}: the "
                "second is at least the first, and at least 1"
            )
        if self.min_replicas == 0 and not self.own:
            raise ValueError("min_replicas 0 is for an endpoint of its own. Set own: true")
        if self.device != "cpu" and not self.own:
            raise ValueError(f"device {self.device!r} is for an endpoint of its own. Set own: true")
        return self


class AppSettings(Frozen):
    """A whole application."""

    endpoints: tuple[EndpointSettings, ...] = Field(min_length=1)
    limits: Limits = Limits()
    keys_file: Path | None = Field(
        None, description="lines `NAME KEY`; without it everyone who reaches the port is let in"
    )
    threads: int = Field(1, ge=1, le=256, description="of one forward pass")
    at_once: int = Field(
        2,
        ge=1,
        le=256,
        description="requests that a replica computes at once; at least a batch, where it batches",
    )
    within_ms: float = Field(
        200.0, gt=0, description="that an answer should take; replicas are added beyond that"
    )
    cpus: float = Field(1.0, ge=0, description="that a replica reserves in the cluster")
    gpus: float = Field(1.0, gt=0, description="that a replica on a GPU reserves")

    @field_validator("endpoints")
    @classmethod
    def _have_names_of_their_own(
        cls, value: tuple[EndpointSettings, ...]
    ) -> tuple[EndpointSettings, ...]:
        names = [endpoint.name for endpoint in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{', '.join(sorted(twice))}: served twice. Names are distinct")
        return value

    def threads_of(self, *endpoints: EndpointSettings) -> int:
        """Requests that a replica with these endpoints computes at once: they fill its batches."""
        return max([self.at_once, *(one.rows_together for one in endpoints)])

    @property
    def shared(self) -> tuple[EndpointSettings, ...]:
        """The endpoints in the ingress's own replicas."""
        return tuple(endpoint for endpoint in self.endpoints if not endpoint.own)

    @property
    def min_replicas(self) -> int:
        """Of the ingress: as many as the neediest of its endpoints has."""
        return max((endpoint.min_replicas for endpoint in self.shared), default=1)

    @property
    def max_replicas(self) -> int:
        """Of the ingress."""
        return max((endpoint.max_replicas for endpoint in self.shared), default=1)
