"""Rolling what is served to where its aliases lead, for as long as a command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.terminal import Terminal
from orchestrator.bundle.reference import parse_reference
from serve.addresses import LOOPBACK, Address

if TYPE_CHECKING:
    from serve.app import EndpointSettings


class AliasFollower:
    """Looks where aliases lead, and rolls the endpoint there, one name after another.

    A version that does not start is tried once: what ran before goes on until the alias moves
    again.

    Args:
        terminal: Is told of each roll, and once of what keeps a name from following.
        port: Of the endpoint on the joined cluster.
    """

    def __init__(self, terminal: Terminal, *, port: int) -> None:
        self._terminal = terminal
        self._port = port
        self._given_up: dict[str, str] = {}
        self._told: dict[str, str] = {}

    def look(self) -> None:
        """Look once; nothing that fails here ends the command, nor keeps other names."""
        from serve.app import running_settings

        try:
            before = running_settings()
        except Exception as err:  # noqa: BLE001  (told; the next look may succeed)
            self._tell("", err)
            return
        for one in () if before is None else before.endpoints:
            try:
                self._follow(one)
            except Exception as err:  # noqa: BLE001  (the same)
                self._tell(one.name, err)

    def _follow(self, one: EndpointSettings) -> None:
        from serve.app import changing, run_app, running_settings

        wanted = followed(one)
        if wanted == one or self._given_up.get(one.name) == wanted.bundle:
            return
        with changing():
            now = running_settings()
            if now is None or one not in now.endpoints:
                return  # another command has changed it meanwhile
            self._terminal.show(f"{one.name}: {one.bundle} → {wanted.bundle} ({one.alias})")
            endpoints = tuple(wanted if other == one else other for other in now.endpoints)
            self._given_up[one.name] = wanted.bundle
            run_app(
                now.model_copy(update={"endpoints": endpoints}), at=Address(LOOPBACK, self._port)
            )
        del self._given_up[one.name]
        self._told.pop(one.name, None)

    def _tell(self, name: str, err: Exception) -> None:
        if self._told.get(name) != str(err):
            self._terminal.show(f"{name or 'what is served'} stays as it is: {err}")
        self._told[name] = str(err)


def followed(one: EndpointSettings) -> EndpointSettings:
    """The model at the version that its alias leads to now.

    One that was deployed by its version, or that a candidate proves itself beside, stays.
    """
    from serve.app import pinned_endpoint

    if one.alias is None or one.registry is None or one.candidate is not None:
        return one
    reference = f"{parse_reference(one.bundle).name}@{one.alias}"
    return pinned_endpoint(one.model_copy(update={"bundle": reference}))
