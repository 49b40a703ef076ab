"""What is stored of an encoder serves texts as it serves images: same batches, same outcome."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.data.examples import Examples
from orchestrator.data.preparing import prepare_data
from orchestrator.data.tokens import ensure_tokens
from orchestrator.features.store import FeatureStore
from orchestrator.models.backbone import Prefix
from orchestrator.models.tokens import Tokens
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.data import DataSpec
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, ObjectiveSpec, TaskSpec
from orchestrator.spec.strategy import FeatureExtraction, Full, Partial, Strategy
from orchestrator.spec.text_encoders import encoder_tokenizer, tokenizer_digest
from orchestrator.spec.vetted import with_defaults
from orchestrator.training.bank import run_bank
from orchestrator.training.evaluation import predict_probs, trained_network
from orchestrator.training.phases import compile_phases
from orchestrator.training.sources import PrefixSource, PreparedSource, build_source
from orchestrator.training.trial import build_network, run_trial
from orchestrator.training.workers import Workers
from tests.orchestrator.text_material import write_encoder, write_texts
from tests.orchestrator.training.small_trials import SIZE, MakeIO

CPU = torch.device("cpu")
ALONE = Workers(rank=0, world_size=1, device=CPU)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> BackboneSpec:
    folder = write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")
    return BackboneSpec(name="tiny", folder=str(folder))


@pytest.fixture(scope="module")
def texts(encoder: BackboneSpec, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    root = tmp_path_factory.mktemp("texts")
    write_texts(root / "train", 20, seed=0)
    spec = DataSpec(train=str(root / "train"), validation=0.3)
    found = prepare_data(spec, task="text-classification", seed=0, cache=root / "cache").examples
    tokenizer = encoder_tokenizer(encoder)
    ensure_tokens(found, tokenizer, tokenizer_digest(tokenizer))
    return found


@pytest.fixture
def make(texts: Examples, store: FeatureStore, tmp_path: Path) -> MakeIO:
    return MakeIO(texts, store, tmp_path)


def experiment_of(strategy: Strategy, texts: Examples, encoder: BackboneSpec) -> Experiment:
    contract = facts_of(encoder).input.model_copy(update={"size": SIZE})
    return Experiment(
        task=TaskSpec(kind="text-classification", labels=texts.labels),
        data_digest=texts.digest,
        backbone=encoder,
        weights_digest="0" * 64,
        input=contract,
        strategy=strategy,
        objective=ObjectiveSpec(metric="log_loss", mode="min"),
    )


def partial(**given: object) -> Partial:
    values = {"unfreeze": 1, "warm_up_epochs": 1, "epochs": 2, "batch_size": 8, **given}
    return Partial.model_validate(with_defaults("partial", "text", values))


@pytest.mark.parametrize("pooling", ["mean", "last", "multi-scale"])
@pytest.mark.parametrize("views", ["fresh", 2])
def test_stored_hidden_states_are_what_the_texts_give(
    texts: Examples, encoder: BackboneSpec, make: MakeIO, pooling: str, views: object
) -> None:
    strategy = partial(pooling=pooling, views=views, predict_views=2, stored_precision="fp32")
    experiment = experiment_of(strategy, texts, encoder)
    io = make(experiment)
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
    texts: Examples, encoder: BackboneSpec, make: MakeIO
) -> None:
    # With dropout the two draw other units: the encoder's is left out by its config's zero rates.
    spec = encoder.model_copy(update={"folder": str(_without_dropout(Path(str(encoder.folder))))})
    experiment = experiment_of(partial(stored_precision="fp32"), texts, spec)
    results = []
    for name, stores in (("stored", True), ("live", False)):
        io = make(experiment, name)
        io.stores_cuts = stores
        results.append(run_trial(experiment, io))
    for one, other in zip(results[0].epochs, results[1].epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.validation == pytest.approx(other.validation, rel=1e-4)


def test_heads_of_a_bank_are_what_they_are_alone(
    texts: Examples, encoder: BackboneSpec, make: MakeIO
) -> None:
    common = {"pooling": "mean", "batch_size": 8, "epochs": 3}
    heads = [{"head_lr": 1e-2}, {"head_lr": 3e-2, "seed": 2}, {"lr_warm_up": 0.3}]
    experiments = [
        experiment_of(FeatureExtraction.model_validate({**common, **head}), texts, encoder)
        for head in heads
    ]
    together = run_bank(
        experiments,
        make(experiments[0]),
        checkpoints=lambda e: make(e, f"bank-{e.id}").checkpoints,
        on_epoch=lambda *_: None,
        stopped_by=lambda: None,
    )
    for experiment, banked in zip(experiments, together, strict=True):
        alone = run_trial(experiment, make(experiment, f"alone-{experiment.id}"))
        assert banked.validation == pytest.approx(alone.validation, rel=1e-4)
        assert banked.best_epoch == alone.best_epoch


def test_a_text_trial_learns_and_its_checkpoint_answers_alike(
    texts: Examples, encoder: BackboneSpec, make: MakeIO
) -> None:
    values = {"epochs": 8, "backbone_lr": 2e-3, "head_lr": 5e-3, "warm_up_epochs": 2}
    strategy = Full.model_validate(with_defaults("full", "text", values))
    experiment = experiment_of(strategy, texts, encoder)
    io = make(experiment)
    result = run_trial(experiment, io)
    assert result.status == "finished"
    assert result.validation["accuracy"] >= 0.8

    rows = texts.indices("validation")
    backbone = make(experiment, "again").used
    assert result.checkpoint is not None
    network = trained_network(experiment, backbone, io.checkpoints / Path(result.checkpoint).name)
    probs = predict_probs(network, experiment, texts, rows, device=CPU, threads=1)
    correct = (probs.argmax(axis=1) == texts.targets()[rows]).mean()
    assert correct == pytest.approx(result.validation["accuracy"])


def _without_dropout(folder: Path) -> Path:
    target = folder.with_name("plain")
    if not target.exists():
        import json
        import shutil

        shutil.copytree(folder, target)
        path = target / "config.json"
        rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        path.write_text(json.dumps({**json.loads(path.read_text()), **rates}))
    return target
