"""Heads on tokens: stored hidden states give what the texts give, and both tasks are learnt."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from orchestrator.data.examples import Examples
from orchestrator.data.pieces import pieces_of, truth_of
from orchestrator.features.store import FeatureStore
from orchestrator.models.backbone import Prefix
from orchestrator.models.tokens import Tokens
from orchestrator.spec.experiment import HEAD, Experiment
from orchestrator.spec.parts import TaskKind
from orchestrator.tasks.task import build_task
from orchestrator.training.bank import run_bank
from orchestrator.training.checkpoint import read_checkpoint
from orchestrator.training.evaluation import predict_split, trained_network
from orchestrator.training.phases import compile_phases
from orchestrator.training.sources import PrefixSource, PreparedSource, build_source
from orchestrator.training.trial import build_network, run_trial
from orchestrator.training.workers import Workers
from tests.orchestrator.training.small_trials import MakeIO, MemoryIO
from tests.orchestrator.training.span_material import Material

CPU = torch.device("cpu")
ALONE = Workers(rank=0, world_size=1, device=CPU)
KINDS: tuple[TaskKind, ...] = ("token-classification", "question-answering")


@pytest.fixture(scope="module", params=KINDS)
def material(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(tmp_path_factory.mktemp("spans"), request.param, n=24)


@pytest.fixture
def make(material: Material, store: FeatureStore, tmp_path: Path) -> MakeIO:
    return MakeIO(material.examples, store, tmp_path)


def test_a_long_text_is_several_inputs_of_one_split(material: Material) -> None:
    pieces = pieces_of(material.examples, material.experiment("full").input)
    assert len(pieces) > len(material.examples)
    train, validation = pieces.indices("train"), pieces.indices("validation")
    assert sorted([*train, *validation]) == list(range(len(pieces)))


@pytest.mark.parametrize("strategy", ["feature-extraction", "partial"])
def test_stored_hidden_states_are_what_the_texts_give(
    material: Material, make: MakeIO, strategy: str
) -> None:
    given = {"unfreeze": 1} if strategy == "partial" else {}
    experiment = material.experiment(strategy, **given)
    io = make(experiment)
    phase = compile_phases(experiment.strategy, 3)[-1]
    stored = build_source(experiment, phase, io.used, io, ALONE)
    io.stores_cuts = False
    live = build_source(experiment, phase, io.used, io, ALONE)
    assert (type(stored), type(live)) == (PrefixSource, PreparedSource)
    cut = stored.cut
    assert cut == (2 if given else 3)
    network = build_network(experiment, io).eval()
    with torch.inference_mode():
        for seen, read in zip(live.training(3), stored.training(3), strict=True):
            assert torch.equal(seen.targets, read.targets)
            assert isinstance(seen.inputs, Tokens)
            assert isinstance(read.inputs, Prefix)
            mask = seen.inputs.mask
            torch.testing.assert_close(
                network.forward_from(read.inputs, cut)[mask],
                network(seen.inputs)[mask],
                rtol=1e-3,
                atol=1e-4,
            )


def test_a_trial_ends_alike_with_stored_hidden_states_and_without(
    material: Material, make: MakeIO
) -> None:
    experiment = material.experiment("partial", unfreeze=1, warm_up_epochs=1, epochs=2)
    results = []
    for name, stores in (("stored", True), ("live", False)):
        io = make(experiment, name)
        io.stores_cuts = stores
        results.append(run_trial(experiment, io))
    for one, other in zip(results[0].epochs, results[1].epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.validation == pytest.approx(other.validation, rel=1e-3, abs=1e-6)


def test_heads_of_a_bank_are_trials_that_can_be_stopped(material: Material, make: MakeIO) -> None:
    heads = [{"head_lr": 1e-2}, {"head_lr": 3e-2, "seed": 2}]
    experiments = [material.experiment("feature-extraction", epochs=3, **head) for head in heads]
    seen: list[tuple[int, int, int]] = []

    def folder(experiment: Experiment) -> Path:
        return make(experiment, f"bank-{experiment.id}").checkpoints

    together = run_bank(
        experiments,
        make(experiments[0]),
        checkpoints=folder,
        on_epoch=lambda *told: seen.append(told),
        stopped_by=lambda: None,
    )
    for experiment, banked in zip(experiments, together, strict=True):
        alone = run_trial(experiment, make(experiment, f"alone-{experiment.id}"))
        assert banked.validation == alone.validation
        assert banked.checkpoint is not None
        assert read_checkpoint(folder(experiment) / Path(banked.checkpoint).name) is not None
    assert seen == [(epoch, 3, left) for left in (2, 1) for epoch in (1, 2, 3)]
    stopped = run_bank(
        experiments[:1],
        make(experiments[0]),
        checkpoints=lambda _: make(experiments[0], "stopped").checkpoints,
        on_epoch=lambda *_: None,
        stopped_by=lambda: "budget",
    )
    assert [(r.status, r.reason, len(r.epochs)) for r in stopped] == [("stopped", "budget", 1)]


def test_fine_tuning_starts_from_a_head_that_was_handed_over(
    material: Material, make: MakeIO
) -> None:
    head = material.experiment("feature-extraction", epochs=2, head_lr=1e-2)
    io = make(head, "head")
    trained = run_trial(head, io)
    assert trained.checkpoint is not None
    found = read_checkpoint(io.checkpoints / Path(trained.checkpoint).name)
    assert found is not None
    child = material.experiment("full", epochs=1)
    child = child.model_copy(update={"parents": {HEAD: head.digest}})
    io = make(child, "child")
    io.parent = {name.removeprefix("head."): t for name, t in found.weights.items()}
    network = build_network(child, io)
    for name, tensor in network.head.state_dict().items():
        assert torch.equal(tensor, io.parent[name])
    assert [row.phase for row in run_trial(child, io).epochs] == ["full"]


def test_a_checkpoint_says_what_its_trial_said(material: Material, make: MakeIO) -> None:
    experiment = material.experiment("full", epochs=1, warm_up_epochs=0, backbone_lr=1e-3)
    io = make(experiment)
    result = run_trial(experiment, io)
    assert result.checkpoint is not None
    folder = io.checkpoints / Path(result.checkpoint).name
    network = trained_network(experiment, make(experiment, "again").used, folder)
    examples, task = material.examples, build_task(experiment.task)
    said = predict_split(network, experiment, examples, "validation", device=CPU, threads=1)
    truth = truth_of(examples, "validation")
    assert task.metrics(said, truth) == pytest.approx(result.validation, rel=1e-5)
    kept = read_checkpoint(folder)
    assert kept is not None
    back = task.unpacked(kept.validation["probs"].numpy(), truth)
    for one, other in zip(said, back, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def work(rank: int, root: Path, data: Path, experiment: Experiment) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    rendezvous = f"file://{root / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    store, checkpoints = FeatureStore(root / "store"), root / "pair"
    io = MemoryIO(experiment, Examples.open(data), store, checkpoints, rank=rank, world_size=2)
    io.stores_cuts = False
    rows = run_trial(experiment, io).epochs
    (root / f"{rank}.pickle").write_bytes(pickle.dumps((rows, io.reported)))
    dist.destroy_process_group()


def test_two_workers_end_with_the_weights_and_metrics_of_one(
    material: Material, make: MakeIO, tmp_path: Path
) -> None:
    given = {"epochs": 1, "warm_up_epochs": 1, "batch_size": 5, "optimizer": "sgd"}
    experiment = material.experiment("full", **given)
    one = make(experiment)
    one.stores_cuts = False
    ours = run_trial(experiment, one).epochs
    args = (tmp_path, material.examples.folder, experiment)
    start_processes(work, args=args, nprocs=2, start_method="spawn")
    pair = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]
    for mine, theirs, others in zip(ours, pair[0][0], pair[1][0], strict=True):
        assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert mine.validation == pytest.approx(theirs.validation, rel=1e-3, abs=1e-5)
        assert (theirs.train_loss, theirs.validation) == (others.train_loss, others.validation)
    for name, tensor in one.reported.items():
        torch.testing.assert_close(pair[0][1][name], tensor, rtol=1e-3, atol=2e-5)
        assert torch.equal(pair[0][1][name], pair[1][1][name])


LEARNT: list[tuple[TaskKind, int, dict[str, object], float]] = [
    ("token-classification", 360, {"epochs": 8}, 0.7),
    ("question-answering", 360, {"epochs": 10}, 0.4),
]


@pytest.mark.parametrize(("kind", "n", "given", "least"), LEARNT, ids=KINDS)
def test_a_tiny_encoder_learns_a_realistic_set_from_nothing(
    kind: TaskKind,
    n: int,
    given: dict[str, object],
    least: float,
    store: FeatureStore,
    tmp_path: Path,
) -> None:
    material = Material(tmp_path, kind, n=n)
    experiment = material.experiment("scratch", size=64, lr=2e-3, **given)
    result = run_trial(experiment, MakeIO(material.examples, store, tmp_path)(experiment))
    assert result.status == "finished"
    assert result.objective is not None
    assert result.objective >= least
