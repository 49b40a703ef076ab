"""Two workers are one: the same weights and metrics but for rounding.

The pair is started once; both processes run all trials of the list, and leave their outcomes.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from orchestrator.data.examples import Examples
from orchestrator.features.store import FeatureStore
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.strategy import FeatureExtraction, Full, Partial, Strategy
from orchestrator.spec.vetted import with_defaults
from orchestrator.training.workers import Workers
from tests.orchestrator.training.small_texts import partial_of, text_experiment_of
from tests.orchestrator.training.small_trials import (
    CPU,
    MakeIO,
    MemoryIO,
    Outcome,
    Report,
    experiment_of,
    run_small,
    stops_after,
)

ALIKE: dict[str, Strategy] = {
    # 13 examples in batches of 4: of the last batch, of one, the second worker has no share.
    "head": FeatureExtraction(epochs=2, batch_size=4, optimizer="sgd", head_lr=0.1, views=2),
    "partial": Partial(
        unfreeze=2,
        warm_up_epochs=1,
        epochs=1,
        batch_size=4,
        optimizer="sgd",
        clip_norm=0.5,
        augment="standard",
    ),
    "uneven": Partial(
        unfreeze=1, warm_up_epochs=1, epochs=1, batch_size=5, accumulate=3, optimizer="sgd"
    ),
    "stored": Partial(
        unfreeze=2,
        warm_up_epochs=1,
        epochs=2,
        batch_size=4,
        optimizer="sgd",
        augment="none",
        views=2,
        ema_decay=0.5,
        pooling="multi-scale",
        stored_precision="fp32",
    ),
    "multi-scale": Partial(
        unfreeze=1, warm_up_epochs=0, epochs=1, batch_size=5, optimizer="sgd", pooling="multi-scale"
    ),
}
# 42 texts in batches of 5: of the last batch, of two, each worker has one.
ALIKE_TEXTS: dict[str, Strategy] = {
    "text": Full.model_validate(
        with_defaults(
            "full", "text", {"warm_up_epochs": 1, "epochs": 1, "batch_size": 5, "optimizer": "sgd"}
        )
    ),
    "stored-text": partial_of(
        unfreeze=2,
        batch_size=5,
        accumulate=2,
        optimizer="sgd",
        views=2,
        predict_views=2,
        pooling="multi-scale",
        stored_precision="fp32",
    ),
    "adapters": partial_of(
        unfreeze=2,
        batch_size=5,
        epochs=1,
        optimizer="sgd",
        adapter="lora",
        stored_precision="fp32",
    ),
}
DIVERGING = Full(
    warm_up_epochs=1,
    epochs=2,
    batch_size=4,
    backbone_lr=10,
    thirds=(10, 10, 10),
    head_lr=10,
    optimizer="sgd",
    schedule="constant",
    clip_norm=0,
)
ADAPTING = Partial(unfreeze=1, warm_up_epochs=0, epochs=1, batch_size=4, batch_norm="adapt")
DROPPING = FeatureExtraction(epochs=1, batch_size=16, dropout=0.5)
FOUR_EPOCHS = FeatureExtraction(epochs=4, batch_size=4)


@dataclass(frozen=True)
class Job:
    """A trial of the pair on the data set in a folder.

    `stop_epochs` are the epochs after which each rank is told to stop, 0 for never.
    """

    name: str
    experiment: Experiment
    data: Path
    stop_epochs: tuple[int, int] = (0, 0)

    def report(self, rank: int) -> Report | None:
        epoch = self.stop_epochs[rank]
        return stops_after(epoch, "asha") if epoch else None


def work(rank: int, root: Path, store: Path, jobs: list[Job]) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    rendezvous = f"file://{root / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    for job in jobs:
        io = MemoryIO(
            job.experiment,
            Examples.open(job.data),
            FeatureStore(store),
            root / job.name,
            on_report=job.report(rank),
            rank=rank,
            world_size=2,
        )
        outcome = run_small(job.experiment, io)
        dist.barrier()
        (root / f"{job.name}-{rank}.pickle").write_bytes(pickle.dumps(outcome))
    workers = Workers(rank=rank, world_size=2, device=CPU)
    gathered = {}
    for n in range(1, 6):
        mine = torch.from_numpy(workers.share(n)).float()[:, None]
        gathered[n] = workers.gather(mine, n).ravel().tolist()
    agreed = [workers.agree(flag) for flag in (rank == 0, rank == 1, True, False)]
    (root / f"plain-{rank}.pickle").write_bytes(pickle.dumps((gathered, agreed)))
    dist.destroy_process_group()


@dataclass(frozen=True)
class Pair:
    """What the two processes left behind."""

    root: Path

    def outcome(self, name: str, rank: int = 0) -> Outcome:
        found: Outcome = pickle.loads((self.root / f"{name}-{rank}.pickle").read_bytes())
        return found

    def plain(self, rank: int) -> tuple[dict[int, list[float]], list[bool]]:
        found: tuple[dict[int, list[float]], list[bool]] = pickle.loads(
            (self.root / f"plain-{rank}.pickle").read_bytes()
        )
        return found


@pytest.fixture(scope="module")
def pair(
    examples: Examples,
    texts: Examples,
    plain_encoder: BackboneSpec,
    store: FeatureStore,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    root = tmp_path_factory.mktemp("pair")

    def job(name: str, strategy: Strategy, stop_epochs: tuple[int, int] = (0, 0)) -> Job:
        return Job(name, experiment_of(strategy, examples), examples.folder, stop_epochs)

    jobs = [
        *(job(name, strategy) for name, strategy in ALIKE.items()),
        *(
            Job(name, text_experiment_of(strategy, texts, plain_encoder), texts.folder)
            for name, strategy in ALIKE_TEXTS.items()
        ),
        job("diverging", DIVERGING),
        job("adapting", ADAPTING),
        job("dropping", DROPPING),
        job("stopped", FOUR_EPOCHS, stop_epochs=(2, 0)),
        job("told-in-vain", FOUR_EPOCHS, stop_epochs=(0, 2)),
    ]
    for some in jobs:  # the features are there before two processes would compute them at once
        strategy = some.experiment.strategy
        io = MemoryIO(some.experiment, Examples.open(some.data), store, root / "unused")
        rows = io.examples.indices("train")
        for view in range(max(strategy.n_views, strategy.predict_views)):
            io.features(rows, view)
            if strategy.inputs_recur and isinstance(strategy, Partial):
                io.activations(rows, io.used.deepest_cut(strategy.unfreeze) or 0, view)
    start_processes(work, args=(root, store.root, jobs), nprocs=2, start_method="spawn")
    return Pair(root)


@pytest.mark.parametrize("name", list(ALIKE))
def test_two_workers_end_with_the_weights_and_metrics_of_one(
    pair: Pair, make_io: MakeIO, name: str
) -> None:
    experiment = experiment_of(ALIKE[name], make_io.examples)
    assert_alike(run_small(experiment, make_io(experiment)), pair.outcome(name))


@pytest.mark.parametrize("name", list(ALIKE_TEXTS))
def test_two_workers_are_one_for_texts(
    pair: Pair, make_text_io: MakeIO, plain_encoder: BackboneSpec, name: str
) -> None:
    experiment = text_experiment_of(ALIKE_TEXTS[name], make_text_io.examples, plain_encoder)
    assert_alike(run_small(experiment, make_text_io(experiment)), pair.outcome(name))


def assert_alike(one: Outcome, two: Outcome) -> None:
    """Asserts that two outcomes are equal but for rounding."""
    assert one.result.phases == two.result.phases
    for ours, theirs in zip(one.result.epochs, two.result.epochs, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.validation == pytest.approx(theirs.validation, rel=1e-3, abs=1e-5)
    for tensor, expected in one.tensors.items():
        torch.testing.assert_close(two.tensors[tensor], expected, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(two.probs, one.probs, atol=1e-4)


@pytest.mark.parametrize("name", [*ALIKE, *ALIKE_TEXTS, "adapting", "stopped"])
def test_both_workers_hold_the_same_network_bit_for_bit(pair: Pair, name: str) -> None:
    first, second = pair.outcome(name, 0), pair.outcome(name, 1)
    assert all(torch.equal(t, second.backbone[n]) for n, t in first.backbone.items())
    assert all(torch.equal(t, second.reported[n]) for n, t in first.reported.items())
    rows = [
        [(r.epoch, r.train_loss, r.validation) for r in outcome.result.epochs]
        for outcome in (first, second)
    ]
    assert rows[0] == rows[1]


def test_adapting_statistics_move_only_in_the_moving_stage(pair: Pair, make_io: MakeIO) -> None:
    io = make_io(experiment_of(ADAPTING, make_io.examples))
    initial = io.used.state_dict()
    reported = pair.outcome("adapting").reported
    for name, tensor in initial.items():
        if name.startswith("stages.6.") and "running_" in name:
            assert not torch.equal(reported[name], tensor)
        elif not name.startswith(("stages.6.", "closing.")):
            assert torch.equal(reported[name], tensor)


def test_a_diverged_trial_ends_on_both_workers(pair: Pair) -> None:
    for rank in (0, 1):
        result = pair.outcome("diverging", rank).result
        assert (result.status, result.best_epoch, len(result.epochs)) == ("diverged", 1, 1)


def test_the_first_workers_stop_is_everybodys(pair: Pair) -> None:
    for rank in (0, 1):
        result = pair.outcome("stopped", rank).result
        assert (result.status, len(result.epochs)) == ("stopped", 2)
    assert pair.outcome("stopped", 0).result.reason == "asha"


def test_another_workers_stop_is_nobodys(pair: Pair) -> None:
    for rank in (0, 1):
        result = pair.outcome("told-in-vain", rank).result
        assert (result.status, len(result.epochs)) == ("finished", 4)


def test_rows_are_gathered_in_their_order_however_many(pair: Pair) -> None:
    for rank in (0, 1):
        gathered, _ = pair.plain(rank)
        assert gathered == {n: list(map(float, range(n))) for n in range(1, 6)}


def test_workers_agree_on_the_first_ones_flag(pair: Pair) -> None:
    for rank in (0, 1):
        assert pair.plain(rank)[1] == [True, False, True, False]


def test_one_worker_needs_no_process_group() -> None:
    alone = Workers(rank=0, world_size=1, device=CPU)
    assert alone.share(3).tolist() == [0, 1, 2]
    assert alone.agree(True)
    assert not alone.agree(False)
    rows = torch.arange(3.0)[:, None]
    assert torch.equal(alone.gather(rows, 3), rows)
    alone.barrier()
