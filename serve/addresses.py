"""Where an endpoint listens: what that is called, and who reaches it. No Ray in it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"


def is_loopback(host: str) -> bool:
    """Whether only programs of the same machine reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Address:
    """A host and a port that something listens at."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """How this machine reaches it."""
        host = self.host
        try:
            found = ipaddress.ip_address(host)
        except ValueError:
            return f"http://{host}:{self.port}"
        if found.is_unspecified:
            host = "::1" if found.version == 6 else LOOPBACK
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
