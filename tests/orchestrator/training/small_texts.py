"""Trials on a few short texts with a tiny encoder."""

from __future__ import annotations

from pathlib import Path

from orchestrator.data.examples import Examples
from orchestrator.data.preparing import prepare_data
from orchestrator.data.tokens import ensure_tokens
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.data import DataSpec
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, ObjectiveSpec, TaskSpec
from orchestrator.spec.strategy import Partial, Strategy
from orchestrator.spec.text_encoders import encoder_tokenizer, tokenizer_digest
from orchestrator.spec.vetted import with_defaults
from tests.orchestrator.text_material import write_encoder, write_texts
from tests.orchestrator.training.small_trials import SIZE


def small_encoder(folder: Path, *, dropout: float) -> BackboneSpec:
    """An encoder of three layers, written to a folder of the name `tiny`."""
    return BackboneSpec(name="tiny", folder=str(write_encoder(folder / "tiny", dropout=dropout)))


def small_texts(root: Path, encoder: BackboneSpec) -> Examples:
    """Sixty texts of three kinds, 30 % of them for validation, with the encoder's tokens."""
    write_texts(root / "train", 20, seed=0)
    spec = DataSpec(train=str(root / "train"), validation=0.3)
    found = prepare_data(spec, task="text-classification", seed=0, cache=root / "cache").examples
    tokenizer = encoder_tokenizer(encoder)
    ensure_tokens(found, tokenizer, tokenizer_digest(tokenizer))
    return found


def text_experiment_of(strategy: Strategy, texts: Examples, encoder: BackboneSpec) -> Experiment:
    """The experiment that `strategy` makes of the texts."""
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


def partial_of(**given: object) -> Partial:
    """Fine-tuning of the last layer for two epochs, with the defaults of texts."""
    values = {"unfreeze": 1, "warm_up_epochs": 1, "epochs": 2, "batch_size": 8, **given}
    return Partial.model_validate(with_defaults("partial", "text", values))
