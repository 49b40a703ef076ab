"""Rolling what is served to where its aliases lead, for as long as a command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.terminal import Terminal
from orchestrator.bundle.reference import parse_reference
from orchestrator.errors import OrchestratorError
from serve.addresses import LOOPBACK, Address

if TYPE_CHECKING:
    from serve.app import AppSettings, EndpointSettings


class AliasFollower:
    """Looks where aliases lead, and rolls the endpoint there.

    A version that does not start is tried once: what ran before goes on until the alias moves
    again.

    Args:
        terminal: Is told of each roll, and of each that fails.
        port: Of the endpoint on the joined cluster.
    """

    def __init__(self, terminal: Terminal, *, port: int) -> None:
        self._terminal = terminal
        self._port = port
        self._given_up: AppSettings | None = None

    def look(self) -> None:
        """Look once; nothing that fails here ends the command."""
        from serve.app import changing, running_settings

        try:
            before = running_settings()
            if before is None or followed(before) in (before, self._given_up):
                return
            with changing():  # another command may have rolled it meanwhile
                if (before := running_settings()) is not None:
                    self._roll(before, followed(before))
        except OrchestratorError as err:
            self._terminal.show(f"what is served stays as it is: {err}")

    def _roll(self, before: AppSettings, wanted: AppSettings) -> None:
        from serve.app import run_app

        if wanted == before:
            return
        for was, one in zip(before.endpoints, wanted.endpoints, strict=True):
            if was != one:
                self._terminal.show(f"{one.name}: {was.bundle} → {one.bundle} ({one.alias})")
        self._given_up = wanted
        run_app(wanted, at=Address(LOOPBACK, self._port))
        self._given_up = None


def followed(before: AppSettings) -> AppSettings:
    """The settings with each model at the version that its alias leads to now.

    One that was deployed by its version, or that a candidate proves itself beside, stays.
    """
    from serve.app import pinned_settings

    endpoints = [_at_its_alias(one) for one in before.endpoints]
    return pinned_settings(before.model_copy(update={"endpoints": tuple(endpoints)}))


def _at_its_alias(one: EndpointSettings) -> EndpointSettings:
    if one.alias is None or one.registry is None or one.candidate is not None:
        return one
    reference = f"{parse_reference(one.bundle).name}@{one.alias}"
    return one.model_copy(update={"bundle": reference})
