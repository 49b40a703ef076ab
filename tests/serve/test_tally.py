"""Counts of many replicas as one, and drift as it is served."""

from __future__ import annotations

import numpy as np

from orchestrator.bundle.drift import DriftGauge, drift_baseline
from orchestrator.bundle.predictor import Outputs
from serve.metrics import IN_FLIGHT, REQUESTS, Metrics, rendered, total_of
from serve.tally import GONE_S, SILENT_S, Tally
from serve.watching import Watched


def test_counters_outlive_their_replica_and_gauges_do_not() -> None:
    now_s = 0.0
    counts = Tally(clock=lambda: now_s)
    for replica, n in (("a", 3), ("b", 4)):
        told = Metrics()
        told.add(REQUESTS, n, model="m", outcome="ok")
        told.add(IN_FLIGHT, 1, model="m")
        counts.tell(replica, told.snapshot())
        counts.tell(replica, told.snapshot())  # the newest replaces, it does not add
    assert total_of(counts.total(), REQUESTS, model="m") == 7
    assert total_of(counts.total(), IN_FLIGHT) == 2
    for now_s in (SILENT_S + 1, GONE_S + 1, GONE_S + 2):  # noqa: B007  (the clock reads it)
        assert total_of(counts.total(), REQUESTS, model="m") == 7
        assert total_of(counts.total(), IN_FLIGHT) == 0
    assert counts._told == {}


def test_what_a_replica_tells_last_is_counted_once_and_its_name_forgotten() -> None:
    counts = Tally()
    for n in (3, 5):
        told = Metrics()
        told.add(REQUESTS, n, model="m", outcome="ok")
        told.add(IN_FLIGHT, 1, model="m")
        counts.tell("a", told.snapshot(), last=n == 5)
    assert total_of(counts.total(), REQUESTS, model="m") == 5
    assert total_of(counts.total(), IN_FLIGHT) == 0
    assert counts._told == {}


def test_prometheus_reads_what_is_rendered() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    counted = Metrics()
    counted.add(REQUESTS, 2, model='a"\\\n', version="1")
    for seconds in (0.001, 0.3, 99):
        counted.observe("orchestrator_request_seconds", seconds, model="m", version="1")
    families = {f.name: f for f in text_string_to_metric_families(rendered(counted.snapshot()))}
    (requests,) = families["orchestrator_requests"].samples
    assert requests.labels == {"model": 'a"\\\n', "version": "1"}
    samples = families["orchestrator_request_seconds"].samples
    buckets = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
    assert (buckets["0.005"], buckets["0.5"], buckets["30"], buckets["+Inf"]) == (1, 2, 2, 3)
    assert [s.value for s in samples if s.name.endswith("_count")] == [3]


class Doubled:
    """Features twice the input; answers nothing else that matters here."""

    def outputs(self, views: list[np.ndarray]) -> Outputs:
        return Outputs(logits=views[0], features=2 * views[0])

    def calibrated(self, logits: np.ndarray) -> np.ndarray:
        return logits


def test_what_is_answered_is_compared_with_what_is_usual() -> None:
    rng = np.random.default_rng(0)
    usual = rng.normal(size=(500, 8)).astype(np.float32)
    gauge = DriftGauge(drift_baseline(2 * usual))
    by = Watched(Doubled(), gauge)  # type: ignore[arg-type]
    assert by.drift() is None
    np.testing.assert_array_equal(by.probabilities([usual[:200]]), usual[:200])
    like = by.drift()
    assert like is not None
    assert like.far_share < 0.15
    by.probabilities([usual[:256] + 5])
    shifted = by.drift()
    assert shifted is not None
    assert shifted.far_share > 0.9
    assert shifted.shift > 3
