"""What was asked and answered, counted by model and version, as Prometheus reads it.

Every number adds up over replicas, so the sum of their snapshots is the endpoint's own state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

Labels = tuple[tuple[str, str], ...]
Snapshot = dict[str, dict[Labels, float]]
Outcome = Literal["ok", "partial", "refused", "overloaded", "late", "failed", "gone"]

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
GONE = 499  # the status that is accounted for a client that did not wait
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

REQUESTS = "orchestrator_requests_total"
ITEMS = "orchestrator_items_total"
SECONDS = "orchestrator_request_seconds"
COMPARED = "orchestrator_comparisons_total"
UNCOMPARED = "orchestrator_uncompared_requests_total"
VERSION_SECONDS = "orchestrator_version_seconds"
DRIFT_SHIFT = "orchestrator_input_drift_shift"
DRIFT_FAR = "orchestrator_input_drift_far_share"
IN_FLIGHT = "orchestrator_requests_in_flight"

_FAMILIES: dict[str, tuple[str, str]] = {
    REQUESTS: ("counter", "Requests by how they ended"),
    ITEMS: ("counter", "Inputs by whether they were answered"),
    SECONDS: ("histogram", "Seconds from the first byte of a request to its answer"),
    COMPARED: ("counter", "Answers of a candidate beside those of the version that is trusted"),
    UNCOMPARED: ("counter", "Requests of which no answers of two versions could be compared"),
    VERSION_SECONDS: (
        "histogram",
        "Seconds that each of two versions took to answer, whether or not a client was told",
    ),
    DRIFT_SHIFT: (
        "gauge",
        "Distance of the newest inputs' mean features from the training mean, in deviations",
    ),
    DRIFT_FAR: ("gauge", "Share of the newest inputs that lie far out; 0.05 of usual ones"),
    IN_FLIGHT: ("gauge", "Requests being read, waiting or being answered"),
}


def outcome_of(status: int) -> Outcome:
    """How a request ended, by the status it was answered with."""
    match status:
        case _ if status == GONE:
            return "gone"
        case 429 | 503:
            return "overloaded"
        case 504:
            return "late"
        case _ if status >= 500:
            return "failed"
        case _:
            return "ok" if status < 400 else "refused"


class Metrics:
    """The counts of one process; touched by one thread alone."""

    def __init__(self) -> None:
        self._values: Snapshot = {name: {} for name in _FAMILIES}

    def add(self, name: str, value: float = 1, /, **labels: str) -> None:
        """Raise a counter, or move a gauge."""
        series = self._values.setdefault(name, {})
        key = tuple(sorted(labels.items()))
        series[key] = series.get(key, 0.0) + value

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Give a gauge a value; a label must tell apart the processes that set it."""
        self._values.setdefault(name, {})[tuple(sorted(labels.items()))] = value

    def observe(self, name: str, seconds: float, /, **labels: str) -> None:
        """One more duration of a histogram."""
        for bound in BUCKETS_S:
            self.add(f"{name}_bucket", float(seconds <= bound), le=f"{bound:g}", **labels)
        self.add(f"{name}_bucket", le="+Inf", **labels)
        self.add(f"{name}_sum", seconds, **labels)
        self.add(f"{name}_count", **labels)

    @contextmanager
    def in_flight(self, model: str) -> Iterator[None]:
        """Count a request as being answered."""
        self.add(IN_FLIGHT, model=model)
        try:
            yield
        finally:
            self.add(IN_FLIGHT, -1, model=model)

    def snapshot(self) -> Snapshot:
        """A copy of all counts."""
        return {name: dict(series) for name, series in self._values.items()}


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The sum of what several processes counted."""
    total: Snapshot = {}
    for snapshot in snapshots:
        for name, series in snapshot.items():
            into = total.setdefault(name, {})
            for labels, value in series.items():
                into[labels] = into.get(labels, 0.0) + value
    return total


GAUGES = tuple(name for name, (kind, _) in _FAMILIES.items() if kind == "gauge")


def total_of(snapshot: Snapshot, name: str, **labels: str) -> float:
    """The sum of a family's series that have these labels."""
    wanted = set(labels.items())
    return sum(value for key, value in snapshot.get(name, {}).items() if wanted <= set(key))


def rendered(snapshot: Mapping[str, Mapping[Labels, float]]) -> str:
    """Prometheus's text format."""
    lines: list[str] = []
    for family, (kind, meaning) in _FAMILIES.items():
        lines += [f"# HELP {family} {meaning}", f"# TYPE {family} {kind}"]
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        for suffix in suffixes:
            for labels, value in snapshot.get(f"{family}{suffix}", {}).items():
                lines.append(f"{family}{suffix}{_label_text(labels)} {value:.10g}")
    return "\n".join(lines) + "\n"


def _label_text(labels: Labels) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
