"""What is stored of an encoder serves texts as it serves images: same batches, same outcome."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.data.examples import Examples
from orchestrator.models.backbone import Prefix
from orchestrator.models.tokens import Tokens
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.strategy import FeatureExtraction, Full
from orchestrator.spec.vetted import with_defaults
from orchestrator.tasks.losses import Loss
from orchestrator.training.bank import run_bank
from orchestrator.training.evaluation import predict_split, trained_network
from orchestrator.training.phase_run import PhaseRun
from orchestrator.training.phases import compile_phases
from orchestrator.training.sources import (
    PrefixSource,
    PreparedSource,
    StoredSource,
    build_source,
)
from orchestrator.training.trial import build_network, run_trial
from orchestrator.training.workers import Workers
from tests.orchestrator.training.small_texts import partial_of, text_experiment_of
from tests.orchestrator.training.small_trials import MakeIO

CPU = torch.device("cpu")
ALONE = Workers(rank=0, world_size=1, device=CPU)


@pytest.mark.parametrize("pooling", ["mean", "last", "multi-scale"])
@pytest.mark.parametrize("views", ["fresh", 2])
def test_stored_hidden_states_are_what_the_texts_give(
    texts: Examples, encoder: BackboneSpec, make_text_io: MakeIO, pooling: str, views: object
) -> None:
    strategy = partial_of(pooling=pooling, views=views, predict_views=2, stored_precision="fp32")
    experiment = text_experiment_of(strategy, texts, encoder)
    io = make_text_io(experiment)
    phase = compile_phases(strategy, 3)[-1]
    stored = build_source(experiment, phase, io.used, io, ALONE)
    io.stores_cuts = False
    live = build_source(experiment, phase, io.used, io, ALONE)
    assert (type(stored), type(live)) == (PrefixSource, PreparedSource)
    assert stored.cut == 2
    network = build_network(experiment, io).eval()
    with torch.inference_mode():
        for seen, read in zip(live.training(3), stored.training(3), strict=True):
            assert torch.equal(seen.targets, read.targets)
            assert isinstance(read.inputs, Prefix)
            assert isinstance(seen.inputs, Tokens)
            assert read.inputs.activations.states.shape[1] == seen.inputs.ids.shape[1]
            torch.testing.assert_close(
                network.forward_from(read.inputs, 2), network(seen.inputs), rtol=1e-3, atol=1e-4
            )
        for seen_views, read_views in zip(live.validation(), stored.validation(), strict=True):
            assert len(seen_views) == len(read_views) == 2
            for seen, read in zip(seen_views, read_views, strict=True):
                torch.testing.assert_close(
                    network.forward_from(read, 2), network(seen), rtol=1e-3, atol=1e-4
                )


def test_a_trial_ends_alike_with_stored_hidden_states_and_without(
    texts: Examples, plain_encoder: BackboneSpec, make_text_io: MakeIO
) -> None:
    # With dropout the two would draw other units.
    experiment = text_experiment_of(partial_of(stored_precision="fp32"), texts, plain_encoder)
    results = []
    for name, stores in (("stored", True), ("live", False)):
        io = make_text_io(experiment, name)
        io.stores_cuts = stores
        results.append(run_trial(experiment, io))
    for one, other in zip(results[0].epochs, results[1].epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.validation == pytest.approx(other.validation, rel=1e-4)


def test_a_head_on_stored_features_is_the_one_that_the_texts_give(
    texts: Examples, plain_encoder: BackboneSpec, make_text_io: MakeIO
) -> None:
    # One batch an epoch: whether texts of like length share a batch then makes no difference.
    strategy = FeatureExtraction(
        pooling="mean", batch_size=64, epochs=4, optimizer="sgd", head_lr=0.1
    )
    experiment = text_experiment_of(strategy, texts, plain_encoder)
    (phase,) = compile_phases(strategy, 3)
    found = []
    for chosen, source in ((phase, StoredSource), (replace(phase, same_inputs=False), None)):
        io = make_text_io(experiment)
        network = build_network(experiment, io)
        loss = Loss(experiment.task, strategy, class_weights=None)
        run = PhaseRun(experiment, chosen, network, loss, io, ALONE)
        stored = build_source(experiment, chosen, io.used, io, ALONE)
        assert isinstance(stored, source or PreparedSource)
        means = [run.train(epoch, 4)[0] for epoch in range(1, 5)]
        found.append((means, run.validation_logits()))
    (read, read_logits), (seen, seen_logits) = found
    assert read == pytest.approx(seen, rel=1e-4)
    torch.testing.assert_close(read_logits, seen_logits, rtol=1e-3, atol=1e-4)


def test_heads_of_a_bank_are_what_they_are_alone(
    texts: Examples, encoder: BackboneSpec, make_text_io: MakeIO
) -> None:
    common = {"pooling": "mean", "batch_size": 8, "epochs": 3}
    heads = [{"head_lr": 1e-2}, {"head_lr": 3e-2, "seed": 2}, {"lr_warm_up": 0.3}]
    experiments = [
        text_experiment_of(FeatureExtraction.model_validate({**common, **head}), texts, encoder)
        for head in heads
    ]
    together = run_bank(
        experiments,
        make_text_io(experiments[0]),
        checkpoints=lambda e: make_text_io(e, f"bank-{e.id}").checkpoints,
        on_epoch=lambda *_: None,
        stopped_by=lambda: None,
    )
    for experiment, banked in zip(experiments, together, strict=True):
        alone = run_trial(experiment, make_text_io(experiment, f"alone-{experiment.id}"))
        assert banked.validation == pytest.approx(alone.validation, rel=1e-4)
        assert banked.best_epoch == alone.best_epoch


def test_a_text_trial_learns_and_its_checkpoint_answers_alike(
    texts: Examples, encoder: BackboneSpec, make_text_io: MakeIO
) -> None:
    values = {"epochs": 8, "backbone_lr": 2e-3, "head_lr": 5e-3, "warm_up_epochs": 2}
    strategy = Full.model_validate(with_defaults("full", "text", values))
    experiment = text_experiment_of(strategy, texts, encoder)
    io = make_text_io(experiment)
    result = run_trial(experiment, io)
    assert result.status == "finished"
    assert result.validation["accuracy"] >= 0.8

    rows = texts.indices("validation")
    backbone = make_text_io(experiment, "again").used
    assert result.checkpoint is not None
    network = trained_network(experiment, backbone, io.checkpoints / Path(result.checkpoint).name)
    probs = predict_split(network, experiment, texts, "validation", device=CPU, threads=1)
    correct = (probs.argmax(axis=1) == texts.targets()[rows]).mean()
    assert correct == pytest.approx(result.validation["accuracy"])
