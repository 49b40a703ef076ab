"""What a phase trains on: every example once an epoch, in views that only the seed decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.data.batches import epoch_batches
from orchestrator.models.backbone import Prefix
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.strategy import Augment, FeatureExtraction, Partial, Pooling, Strategy
from orchestrator.training.phases import compile_phases
from orchestrator.training.sources import (
    Batch,
    PrefixSource,
    PreparedSource,
    StoredSource,
    build_source,
)
from orchestrator.training.trial import build_network
from orchestrator.training.workers import Workers
from tests.orchestrator.training.small_trials import CPU, MakeIO, MemoryIO, experiment_of

ALONE = Workers(rank=0, world_size=1, device=CPU)


def batches_of(experiment: Experiment, io: MemoryIO, epoch: int, workers: Workers) -> list[Batch]:
    (phase,) = compile_phases(experiment.strategy, 6)
    return list(build_source(experiment, phase, io.used, io, workers).training(epoch))


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        (FeatureExtraction(), StoredSource),
        (FeatureExtraction(augment="light", views=2), StoredSource),
        (FeatureExtraction(augment="light"), PreparedSource),
        (FeatureExtraction(mixup=0.1), PreparedSource),
        (FeatureExtraction(mixup=0.1, augment="light", views=2), PreparedSource),
    ],
)
def test_features_are_read_where_images_would_say_the_same(
    make_io: MakeIO, strategy: Strategy, kind: type
) -> None:
    experiment = experiment_of(strategy, make_io.examples)
    (phase,) = compile_phases(strategy, 6)
    io = make_io(experiment)
    assert type(build_source(experiment, phase, io.used, io, ALONE)) is kind


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_workers_shares_are_each_batch_once(make_io: MakeIO, world_size: int) -> None:
    experiment = experiment_of(FeatureExtraction(batch_size=4, seed=3), make_io.examples)
    io = make_io(experiment)
    shares = [
        batches_of(experiment, io, 2, Workers(rank=rank, world_size=world_size, device=CPU))
        for rank in range(world_size)
    ]
    expected = epoch_batches(io.examples.indices("train"), batch_size=4, seed=3, epoch=2)
    for step, rows in enumerate(expected):
        parts = [share[step] for share in shares]
        assert {part.n_global for part in parts} == {len(rows)}
        counted = [part.inputs for part in parts if part.weight == 1.0]
        assert all(len(part.inputs) == 1 for part in parts if part.weight == 0.0)
        found = torch.cat(counted).numpy()
        wanted = io.features(rows)
        assert sorted(map(bytes, found)) == sorted(map(bytes, wanted))


def test_each_epoch_has_every_example_once_in_another_order(make_io: MakeIO) -> None:
    experiment = experiment_of(FeatureExtraction(batch_size=4), make_io.examples)
    io = make_io(experiment)
    wanted = sorted(map(bytes, io.features(io.examples.indices("train"))))
    orders = []
    for epoch in (1, 2):
        rows = torch.cat([b.inputs for b in batches_of(experiment, io, epoch, ALONE)]).numpy()
        assert sorted(map(bytes, rows)) == wanted
        orders.append(rows)
    assert not np.array_equal(orders[0], orders[1])


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stored_view_is_drawn_by_seed_epoch_and_example_only(
    make_io: MakeIO, world_size: int
) -> None:
    """Neither the batch size nor the number of workers changes which view an example has."""

    def views(seed: int, epoch: int, batch_size: int, world_size: int) -> dict[int, int]:
        experiment = experiment_of(
            FeatureExtraction(views=4, seed=seed, batch_size=batch_size), make_io.examples
        )
        io = make_io(experiment)
        rows = io.examples.indices("train")
        owner = {
            bytes(features): (int(row), view)
            for view in range(4)
            for row, features in zip(rows, io.features(rows, view), strict=True)
        }
        found: dict[int, int] = {}
        for rank in range(world_size):
            workers = Workers(rank=rank, world_size=world_size, device=CPU)
            for batch in batches_of(experiment, io, epoch, workers):
                if batch.weight:
                    found.update(owner[bytes(features)] for features in batch.inputs.numpy())
        return found

    first = views(1, 2, 4, 1)
    assert len(first) == 13
    assert len(set(first.values())) > 1
    assert views(1, 2, 5, world_size) == first
    assert views(1, 3, 4, world_size) != first
    assert views(2, 2, 4, world_size) != first


def test_validation_is_the_examples_themselves_in_order(make_io: MakeIO) -> None:
    experiment = experiment_of(FeatureExtraction(views=4, predict_views=2), make_io.examples)
    io = make_io(experiment)
    (phase,) = compile_phases(experiment.strategy, 6)
    source = build_source(experiment, phase, io.used, io, ALONE)
    batches = list(source.validation())
    for view in range(2):
        found = torch.cat([views[view] for views in batches]).numpy()
        assert np.array_equal(found, io.features(io.examples.indices("validation"), view))
    assert {len(views) for views in batches} == {2}


def test_stored_features_are_what_the_images_give(make_io: MakeIO) -> None:
    experiment = experiment_of(FeatureExtraction(batch_size=4), make_io.examples)
    io = make_io(experiment)
    (phase,) = compile_phases(experiment.strategy, 6)
    images = PreparedSource(experiment, phase, io, ALONE)
    stored = StoredSource(experiment, "none", io, ALONE)
    with torch.inference_mode():
        for seen, read in zip(images.training(1), stored.training(1), strict=True):
            features = io.used.features(seen.inputs)
            torch.testing.assert_close(features, read.inputs, rtol=1e-4, atol=1e-5)
            assert torch.equal(seen.targets, read.targets)


@pytest.mark.parametrize("augment", ["none", "standard"])
@pytest.mark.parametrize("pooling", ["last", "multi-scale"])
@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "resnet18"])
def test_stored_activations_are_what_the_images_give_in_the_same_views(
    make_io: MakeIO, backbone: str, pooling: Pooling, augment: Augment
) -> None:
    strategy = Partial(
        unfreeze=1, warm_up_epochs=0, epochs=1, batch_size=4, augment=augment, views=8,
        predict_views=2, pooling=pooling, stored_precision="fp32",
    )  # fmt: skip
    experiment = experiment_of(strategy, make_io.examples, backbone=backbone)
    io = make_io(experiment)
    (phase,) = compile_phases(strategy, io.used.n_stages)
    stored = build_source(experiment, phase, io.used, io, ALONE)
    io.stores_cuts = False
    images = build_source(experiment, phase, io.used, io, ALONE)
    assert (type(stored), type(images)) == (PrefixSource, PreparedSource)
    assert stored.cut is not None
    network = build_network(experiment, io).eval()
    with torch.inference_mode():
        for seen, read in zip(images.training(3), stored.training(3), strict=True):
            assert torch.equal(seen.targets, read.targets)
            assert isinstance(read.inputs, Prefix)
            assert isinstance(seen.inputs, torch.Tensor)
            features = network.backbone.features(seen.inputs, pooling)
            torch.testing.assert_close(
                network.forward_from(read.inputs, stored.cut),
                network.head(features),
                rtol=1e-3,
                atol=1e-4,
            )
        for (pictures,), views in zip(images.validation(), stored.validation(), strict=True):
            of_views = [network.forward_from(prefix, stored.cut) for prefix in views]
            torch.testing.assert_close(
                torch.stack(of_views).mean(0), network(pictures), rtol=1e-3, atol=1e-4
            )


def test_a_phase_whose_pictures_change_reads_images(make_io: MakeIO) -> None:
    for changes in ({"augment": "light"}, {"mixup": 0.2}, {"cutmix": 1.0}):
        strategy = Partial(**{"unfreeze": 1, "warm_up_epochs": 0, "augment": "none"} | changes)
        experiment = experiment_of(strategy, make_io.examples)
        io = make_io(experiment)
        (phase,) = compile_phases(strategy, io.used.n_stages)
        assert type(build_source(experiment, phase, io.used, io, ALONE)) is PreparedSource


def test_fixed_draws_recur_and_fresh_ones_do_not(make_io: MakeIO) -> None:
    """Of four draws an example shows at most four pictures, whatever seed and epoch draw them."""

    def pictures(strategy: FeatureExtraction, epoch: int) -> set[bytes]:
        experiment = experiment_of(strategy, make_io.examples)
        io = make_io(experiment)
        (phase,) = compile_phases(strategy, io.used.n_stages)
        batches = PreparedSource(experiment, phase, io, ALONE).training(epoch)
        return {bytes(image.numpy()) for batch in batches for image in batch.inputs}

    n_examples = len(make_io.examples.indices("train"))
    fixed = [FeatureExtraction(augment="light", views=4, seed=seed) for seed in (0, 7)]
    seen = set.union(*(pictures(s, epoch) for s in fixed for epoch in range(1, 7)))
    assert n_examples < len(seen) <= 4 * n_examples
    fresh = FeatureExtraction(augment="light")
    seen = set.union(*(pictures(fresh, epoch) for epoch in (1, 2, 3, 4, 5, 6)))
    assert len(seen) > 5 * n_examples
