"""Keys: who may ask. Only their digests are kept, so none can be logged, shown or sent on."""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import SpecError

from .problems import Refusal

SHORTEST_KEY = 20
LONGEST_KEY = 512

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAKE_ONE = (
    "`(umask 077; python3 -c \"import secrets; print('me', secrets.token_urlsafe(32))\" > FILE)`"
)


class Keys:
    """Named keys, of which a request must carry one; none at all lets everyone in."""

    def __init__(self, digests: Mapping[str, str]) -> None:
        """Keys by what `read_keys` gives: name → SHA-256 in hexadecimal digits."""
        self._digests = {name: bytes.fromhex(digest) for name, digest in digests.items()}

    def __len__(self) -> int:
        return len(self._digests)

    def check(self, headers: Mapping[str, str]) -> str | None:
        """The name of the key that a request carries; None where none is needed.

        Args:
            headers: Names in lower case.

        Raises:
            Refusal: The key is missing or wrong.
        """
        if not self._digests:
            return None
        given = _given(headers)
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, expected in self._digests.items():  # all of them: time tells nothing
            if hmac.compare_digest(digest, expected):
                found = name
        if found is None:
            raise Refusal(
                "key-wrong",
                "The key in the request is not one that this endpoint knows. Ask for one",
            )
        return found


def read_keys(path: Path) -> dict[str, str]:
    """Name → SHA-256 of each key in a file of lines `NAME KEY`; `#` begins a comment.

    Raises:
        SpecError: With everything that is wrong with the file.
    """
    try:
        with path.open(encoding="utf-8") as file:
            open_to_others = stat.S_IMODE(path.stat().st_mode) & 0o077
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as err:
        reason = getattr(err, "strerror", None) or "is not UTF-8"
        raise SpecError(f"keys: {path}: {reason}. Make one with {_MAKE_ONE}") from err
    if open_to_others:
        raise SpecError(f"keys: others can read {path}. Run `chmod 600 {path}`")
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if words := line.partition("#")[0].split():
            name, key = _parsed(words, f"keys: {path}:{number}")
            if name in found:
                raise SpecError(f"keys: {path}:{number}: a second key has the name {name!r}")
            found[name] = hashlib.sha256(key.encode()).hexdigest()
    if not found:
        raise SpecError(f"keys: {path} holds no key. Make one with {_MAKE_ONE}")
    return found


def _parsed(words: list[str], where: str) -> tuple[str, str]:
    """A line's name and key; messages never repeat what may be a key."""
    if len(words) != 2:
        raise SpecError(f"{where}: {len(words)} words. A line is a name and a key")
    name, key = words
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"{where}: the first word is no name. Use up to 64 of letters, digits, '.', '_', '-'"
        )
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY or not key.isascii():
        raise SpecError(
            f"{where}: the key of {name!r} has {len(key)} characters. Use {SHORTEST_KEY} to "
            f"{LONGEST_KEY} in ASCII, drawn at random: {_MAKE_ONE}"
        )
    return name, key


def _given(headers: Mapping[str, str]) -> str:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    key = credentials.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not key:
        raise Refusal(
            "key-missing",
            "Send a key as the header `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            {"WWW-Authenticate": "Bearer"},
        )
    return key
