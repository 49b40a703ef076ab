"""A trial with adapters: they and the head are all that it trains, keeps and takes up again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.data.examples import Examples
from orchestrator.models.backbone import is_adapter
from orchestrator.spec.experiment import HEAD, Experiment
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.strategy import Partial
from orchestrator.tasks.losses import Loss
from orchestrator.training.checkpoint import folder_name, read_checkpoint
from orchestrator.training.phase_run import PhaseRun
from orchestrator.training.phases import Phase, compile_phases
from orchestrator.training.sources import PrefixSource, build_source
from orchestrator.training.trial import build_network, run_trial
from orchestrator.training.workers import Workers
from tests.orchestrator.training.small_texts import partial_of, text_experiment_of
from tests.orchestrator.training.small_trials import (
    CPU,
    InterruptError,
    MakeIO,
    assert_same,
    dies_after,
    experiment_of,
    run_small,
)

ALONE = Workers(rank=0, world_size=1, device=CPU)


def tuning_of(experiment: Experiment) -> Phase:
    return compile_phases(experiment.strategy, 3)[-1]


@pytest.fixture
def adapted(texts: Examples, encoder: BackboneSpec) -> Experiment:
    strategy = partial_of(
        adapter="lora",
        unfreeze=2,
        lora_rank=4,
        lora_dropout=0.1,
        head_lr=1e-2,
        stored_precision="fp32",
    )
    return text_experiment_of(strategy, texts, encoder)


def test_the_groups_are_the_adapters_and_the_head(
    adapted: Experiment, make_text_io: MakeIO
) -> None:
    result = run_trial(adapted, make_text_io(adapted))
    warm_up, tuning = result.phases
    assert {group.name for group in warm_up.groups} == {"head", "head (norms, biases)"}
    # Of each layer, query and value [32, 32] have A [4, 32] and B [32, 4]; decayed, at one rate.
    layers = [group for group in tuning.groups if group.name.startswith("stage")]
    assert [(g.name, g.parameters) for g in layers] == [("stage2", 512), ("stage3", 512)]
    assert {(g.lr, g.weight_decay) for g in layers} == {(4e-4, 1e-2)}
    assert tuning.trainable - warm_up.trainable == 2 * 512
    assert tuning.total == warm_up.total


def test_only_adapters_and_head_move(adapted: Experiment, make_text_io: MakeIO) -> None:
    io = make_text_io(adapted)
    before = {name: tensor.clone() for name, tensor in io.used.state_dict().items()}
    run_trial(adapted, io)
    after = io.used.state_dict()
    plain = {n.replace(".base_layer", ""): t for n, t in after.items() if not is_adapter(n)}
    assert plain.keys() == before.keys()
    assert all(torch.equal(plain[name], before[name]) for name in before)
    learnt = [t for n, t in after.items() if ".lora_B." in n]
    assert len(learnt) == 4
    assert all(bool(tensor.any()) for tensor in learnt)


def test_checkpoints_and_optimiser_hold_them_alone(
    adapted: Experiment, make_text_io: MakeIO
) -> None:
    io = make_text_io(adapted)
    result = run_trial(adapted, io)
    found = read_checkpoint(io.checkpoints / folder_name(result.best_epoch or 0))
    assert found is not None
    others = {name for name in found.weights if not name.startswith("head.")}
    assert len(others) == 8
    assert all(is_adapter(name) for name in others)
    n_moments = sum(key.endswith(".exp_avg") for key in found.optimizer)
    assert n_moments == 8 + 2  # and the head's weight and bias


def test_a_resumed_trial_ends_as_one_that_was_not_interrupted(
    adapted: Experiment, make_text_io: MakeIO
) -> None:
    whole = run_small(adapted, make_text_io(adapted, "whole"))
    with pytest.raises(InterruptError):
        run_trial(adapted, make_text_io(adapted, "broken", on_report=dies_after(2)))
    assert_same(run_small(adapted, make_text_io(adapted, "broken")), whole)


def test_the_network_of_a_checkpoint_is_plain_and_answers_as_the_adapted_one(
    adapted: Experiment, make_text_io: MakeIO
) -> None:
    io = make_text_io(adapted)
    names = {f"backbone.{name}" for name in io.used.state_dict()}
    outcome = run_small(adapted, io)
    found = read_checkpoint(io.checkpoints / folder_name(outcome.result.best_epoch or 0))
    assert found is not None
    assert {name for name in outcome.tensors if name.startswith("backbone.")} == names
    np.testing.assert_allclose(outcome.probs, found.validation["probs"], atol=1e-5)


def test_stored_hidden_states_are_those_of_partial_finetuning_of(
    texts: Examples, plain_encoder: BackboneSpec, make_text_io: MakeIO
) -> None:
    """One entry of the store serves both, and a trial ends alike without it."""
    outcomes = {}
    for adapter, stores in (("none", True), ("lora", True), ("lora", False)):
        strategy = partial_of(adapter=adapter, stored_precision="fp32")
        experiment = text_experiment_of(strategy, texts, plain_encoder)
        io = make_text_io(experiment, f"{adapter}-{stores}")
        io.stores_cuts = stores
        source = build_source(experiment, tuning_of(experiment), io.used, io, ALONE)
        assert isinstance(source, PrefixSource) is stores
        outcomes[adapter, stores] = run_trial(experiment, io)
    for one, other in zip(
        outcomes["lora", True].epochs, outcomes["lora", False].epochs, strict=True
    ):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.validation == pytest.approx(other.validation, rel=1e-4)
    first = outcomes["none", True].epochs[0]  # the warm-up
    assert outcomes["lora", True].epochs[0].validation == first.validation


def test_a_handed_over_head_starts_the_adapters_at_once(
    adapted: Experiment, make_text_io: MakeIO
) -> None:
    child = adapted.model_copy(update={"parents": {HEAD: "f" * 64}})
    io = make_text_io(child)
    other = build_network(adapted, make_text_io(adapted))
    io.parent = {name: tensor + 0.5 for name, tensor in other.head.state_dict().items()}
    result = run_trial(child, io)
    assert [phase.name for phase in result.phases] == ["partial"]


def test_a_frozen_stage_that_gets_a_gradient_stops_the_trial(
    adapted: Experiment, make_text_io: MakeIO
) -> None:
    io = make_text_io(adapted)
    network = build_network(adapted, io)
    loss = Loss(adapted.task, adapted.strategy, class_weights=None)
    run = PhaseRun(adapted, tuning_of(adapted), network, loss, io, ALONE)
    frozen = next(p for n, p in network.named_parameters() if n.endswith("query.base_layer.weight"))
    frozen.requires_grad_(True)
    with pytest.raises(AssertionError, match="frozen: stage 2"):
        run.train(1, 1)


def test_adapters_average_and_accumulate_as_weights_do(
    texts: Examples, encoder: BackboneSpec, make_text_io: MakeIO
) -> None:
    strategy = partial_of(adapter="lora", ema_decay=0.9, accumulate=2, pooling="multi-scale")
    experiment = text_experiment_of(strategy, texts, encoder)
    whole = run_small(experiment, make_text_io(experiment, "whole"))
    with pytest.raises(InterruptError):
        run_trial(experiment, make_text_io(experiment, "broken", on_report=dies_after(2)))
    assert_same(run_small(experiment, make_text_io(experiment, "broken")), whole)


def test_adapters_train_beside_the_attention_of_an_image_transformer(
    make_io: MakeIO,
) -> None:
    strategy = Partial(
        adapter="lora", unfreeze=2, warm_up_epochs=0, epochs=1, batch_size=4, lora_rank=2
    )
    experiment = experiment_of(strategy, make_io.examples, backbone="vit_tiny_patch16_224")
    outcome = run_small(experiment, make_io(experiment))
    assert outcome.result.status == "finished"
    layers = [g for g in outcome.result.phases[0].groups if g.name.startswith("stage")]
    # Query, key and value are one layer here, [576, 192].
    assert [(g.name, g.parameters) for g in layers] == [("stage11", 1536), ("stage12", 1536)]
    assert not [name for name in outcome.tensors if is_adapter(name)]
