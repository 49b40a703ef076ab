"""Everything that this product raises on purpose.

    OrchestratorError            exit code 1
    ├── SpecError                exit code 2   a spec, command line or request that cannot be met
    │   ├── CapacityError                      the cluster cannot hold what was asked for
    │   └── UnknownSettingsError               what is served cannot be changed (serve/app.py)
    ├── DataError                exit code 3   the data cannot be used as it is
    │   └── UnreadableExample                  one image or text cannot be read
    ├── WeightsError             exit code 2   a weights file is refused or does not fit
    ├── IntegrityError           exit code 1   stored bytes are not the bytes that were written
    ├── BundleError              exit code 1   a folder is no bundle, or one of another version
    │   └── BundleTakenError                   the folder holds another bundle
    ├── RegistryError            exit code 1   a name, version or alias is not in the registry
    ├── SweepLockedError         exit code 1   another process is running this sweep
    ├── StorageError             exit code 1   a storage's URI cannot be read or written
    ├── DivergedError            exit code 1   a loss became NaN or infinite
    └── Refusal                                a request that is not answered (serve/problems.py)

A message says what is wrong with the value, what was allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class OrchestratorError(Exception):
    """Base of all errors that a user can do something about."""

    exit_code = 1


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a spec: where, and a sentence about the value found there."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class SpecError(OrchestratorError):
    """One or more faults in what the user wrote; all of them, never only the first."""

    exit_code = 2

    def __init__(self, faults: Iterable[Fault] | str, *, source: str = "") -> None:
        self.faults = (Fault("", faults),) if isinstance(faults, str) else tuple(faults)
        self.source = source
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [str(fault) for fault in self.faults]
        if len(lines) == 1 and not self.source:
            return lines[0]
        count = f"{len(lines)} fault{'s' if len(lines) > 1 else ''}"
        where = f" in {self.source}" if self.source else ""
        return "\n".join([f"{count}{where}", *(f"  {line}" for line in lines)])


class CapacityError(SpecError):
    """What was asked for does not fit the cluster; the message carries the arithmetic."""


class DataError(OrchestratorError):
    """The data cannot be used as it is."""

    exit_code = 3


class UnreadableExample(DataError):  # noqa: N818 (says what was met, like httpx's InvalidURL)
    """Bytes that are no whole image of an accepted format and size, or no text, and why."""

    def __init__(self, reason: str, *, source: str = "") -> None:
        self.reason = reason
        self.source = source
        super().__init__(f"{source}: {reason}" if source else reason)


def reason_of(err: Exception) -> str:
    """Why an input cannot be read, without its place, which whoever tells it knows."""
    return str(getattr(err, "reason", None) or getattr(err, "strerror", None) or err)


class WeightsError(OrchestratorError):
    """A weights file is refused (pickle), unreadable, or does not fit its backbone."""

    exit_code = 2


class IntegrityError(OrchestratorError):
    """Stored bytes are not the bytes that were written."""


class BundleError(OrchestratorError):
    """A folder is not a bundle, or was written by a format that this version cannot read."""


class BundleTakenError(BundleError):
    """A folder holds another bundle, and bundles are not overwritten."""


class RegistryError(OrchestratorError):
    """A name, version or alias is not in the registry."""


class SweepLockedError(OrchestratorError):
    """Another process is running this sweep; two writers would mix their files."""


class StorageError(OrchestratorError):
    """A storage's URI cannot be reached, or its store refuses; the driver's own words are in it."""


class DivergedError(OrchestratorError):
    """A training loss became NaN or infinite."""


def nearest(value: object, allowed: Iterable[str]) -> str:
    """A clause naming the closest allowed word, or nothing when none is close.

    Args:
        value: What the user wrote.
        allowed: The words that would have been accepted.
    """
    text, words = str(value), list(allowed)
    found = difflib.get_close_matches(text, words, n=1, cutoff=0.5)
    if not found and text:
        found = [word for word in words if word.startswith(text)]
    return f" Did you mean {found[0]!r}?" if found else ""


def shown(value: object, *, most: int = 120) -> str:
    """What the user wrote, as a message repeats it: cut after `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def listing(allowed: Iterable[object], *, most: int = 12) -> str:
    """The allowed values as one readable phrase, cut after `most`."""
    words = [str(value) for value in allowed]
    shown = ", ".join(words[:most])
    return f"{shown}, … ({len(words)} in all)" if len(words) > most else shown
