"""Passes of several threads are one; each has its answer as alone, and faults stay apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.bundle.batching import BatchedPredictor, Batcher, split_outputs
from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.predictor import NetworkPredictor, Outputs, load_predictor, load_predictors
from orchestrator.bundle.shared_trunk import TrunkPredictor
from orchestrator.data.inputs import Prepared
from orchestrator.data.tokens import TokenRows
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import Runtime
from orchestrator.spec.record import Record
from orchestrator.spec.stopping import Stopped, stoppable
from orchestrator.spec.strategy import FeatureExtraction
from tests.orchestrator.bundle.small_bundles import image_bundle, text_bundle

RNG = np.random.default_rng(0)


class Doubling:
    """Doubles numbers, slowly; keeps the batches that it was given."""

    def __init__(self, *, bad: int = -1) -> None:
        self.batches: list[list[int]] = []
        self.bad = bad
        self.at_once = 0

    def __call__(self, values: Sequence[int]) -> list[int]:
        self.at_once += 1
        assert self.at_once == 1, "two batches run at a time"
        self.batches.append(list(values))
        time.sleep(0.05)
        self.at_once -= 1
        if self.bad in values:
            raise ValueError(f"{self.bad} is bad")
        return [2 * value for value in values]


def together(call: Callable[[int], int], values: Sequence[int]) -> list[Any]:
    """What threads that call at once are answered, or what they raise."""
    gate = threading.Barrier(len(values))

    def one(value: int) -> Any:
        gate.wait()
        try:
            return call(value)
        except ValueError as err:
            return str(err)

    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(one, values))


def test_a_lone_call_waits_for_nobody() -> None:
    doubling = Doubling()
    call = Batcher(doubling, rows=lambda _: 1, most_rows=8)
    assert call(3) == 6
    assert doubling.batches == [[3]]


def test_who_comes_while_a_batch_runs_goes_with_the_next() -> None:
    doubling = Doubling()
    call = Batcher(doubling, rows=lambda _: 1, most_rows=100)
    assert together(call, range(16)) == [2 * value for value in range(16)]
    assert sum(map(len, doubling.batches)) == 16
    assert len(doubling.batches) <= 3  # the first caller's, and those who came meanwhile


def test_who_is_told_to_stop_waits_no_longer_and_goes_with_nobody() -> None:
    hangs = threading.Event()
    batches: list[list[int]] = []

    def run(values: Sequence[int]) -> list[int]:
        batches.append(list(values))
        hangs.wait()
        return list(values)

    call = Batcher(run, rows=lambda _: 1, most_rows=8)
    told = threading.Event()

    def stopped() -> int:
        with stoppable(told):
            return call(2)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, 1)
        while not batches:
            time.sleep(0.01)
        second = pool.submit(stopped)
        time.sleep(0.05)
        told.set()
        assert isinstance(second.exception(timeout=5), Stopped)
        assert not first.done()
        hangs.set()
        assert first.result(timeout=5) == 1
    assert call(3) == 3
    assert batches == [[1], [3]]


def test_a_batch_has_no_more_rows_than_it_may_and_what_has_more_goes_alone() -> None:
    doubling = Doubling()
    call = Batcher(doubling, rows=lambda value: value, most_rows=4)
    values = [1, 2, 3, 9, 1, 2, 4, 1]
    assert together(call, values) == [2 * value for value in values]
    assert sorted(value for batch in doubling.batches for value in batch) == sorted(values)
    assert all(sum(batch) <= 4 or batch == [9] for batch in doubling.batches)


def test_a_value_that_fails_fails_alone() -> None:
    doubling = Doubling(bad=5)
    call = Batcher(doubling, rows=lambda _: 1, most_rows=100)
    found = together(call, range(8))
    assert found == [2 * value if value != 5 else "5 is bad" for value in range(8)]
    assert call(1) == 2


def test_tokens_of_padding_are_no_answers() -> None:
    lengths = (3, 7)
    parts = [TokenRows(np.zeros((2, n), np.int64), np.full(2, n)) for n in lengths]
    logits = RNG.normal(size=(4, 7, 5)).astype(np.float32)
    first, second = split_outputs(Outputs(logits, np.zeros((4, 6), np.float32)), parts)
    np.testing.assert_array_equal(first.logits, logits[:2, :3])
    np.testing.assert_array_equal(second.logits, logits[2:])
    assert first.features.shape == second.features.shape == (2, 6)


def networks(folder: Path, experiment: Experiment, record: Record) -> dict[str, Bundle]:
    """An image and a text bundle."""
    pooled = FeatureExtraction(seed=7, pooling="mean")
    return {
        "image": image_bundle(folder / "image", experiment, record),
        "text": text_bundle(folder / "text", experiment, record, strategy=pooled),
    }


def asked(kind: str, predictor: Any) -> list[list[Prepared]]:
    """Requests of one to three inputs, texts of all lengths."""
    if kind == "image":
        shapes = [(n % 3 + 1, 3, 64, 64) for n in range(12)]
        return [[RNG.integers(0, 256, shape, np.uint8)] for shape in shapes]
    texts = [" ".join(["the cat and the dog"] * (1 + n % 5)) for n in range(12)]
    return [predictor.preparer.batch([predictor.preparer.read(text)]) for text in texts]


class Counted(NetworkPredictor):
    """A network that counts its passes, each of which takes a while."""

    def __init__(self, network: NetworkPredictor) -> None:
        super().__init__(network.manifest, network.preparer, n_features=network.n_features)
        self.network = network
        self.n_passes = 0

    def run(self, prepared: Prepared) -> Outputs:
        self.n_passes += 1
        time.sleep(0.05)
        return self.network.run(prepared)


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
@pytest.mark.parametrize("kind", ["image", "text"])
def test_joined_passes_have_the_outputs_of_each_request_alone(
    tmp_path: Path, experiment: Experiment, record: Record, kind: str, runtime: Runtime
) -> None:
    bundle = networks(tmp_path, experiment, record)[kind]
    counted = Counted(load_predictor(bundle, runtime=runtime, threads=1))
    batched = BatchedPredictor(counted, most_rows=64)
    requests = asked(kind, batched)
    alone = [counted.network.outputs(views) for views in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        found = list(pool.map(batched.outputs, requests))
    assert counted.n_passes < len(requests) / 2
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=2e-5)
        np.testing.assert_allclose(one.features, other.features, atol=2e-5)


def test_requests_for_bundles_of_one_trunk_pass_it_together(
    tmp_path: Path, experiment: Experiment, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = [image_bundle(tmp_path / str(n), experiment, record, seed=n) for n in range(4)]
    shared = load_predictors(bundles, threads=1, batch_rows=16)
    trunk = shared[0].trunk  # type: ignore[attr-defined]
    assert all(isinstance(one, TrunkPredictor) and one.trunk is trunk for one in shared)
    passes, outputs = [], trunk.outputs

    def slow(requests: Any) -> Any:
        passes.append([predictor for predictor, _ in requests])
        time.sleep(0.05)
        return outputs(requests)

    monkeypatch.setattr(trunk, "outputs", slow)
    requests = [(n % 4, RNG.integers(0, 256, (1, 3, 64, 64), np.uint8)) for n in range(12)]
    with ThreadPoolExecutor(len(requests)) as pool:
        found = list(pool.map(lambda one: shared[one[0]].outputs([one[1]]), requests))
    assert len(passes) <= 4
    assert max(len(set(predictors)) for predictors in passes) > 1
    for (n, pixels), one in zip(requests, found, strict=True):
        alone = load_predictor(bundles[n], threads=1).outputs([pixels])
        np.testing.assert_allclose(one.logits, alone.logits, atol=2e-5)
