"""The texts of a data set as the tokens of some encoders, once a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.data.examples import Examples
from orchestrator.data.pieces import ensure_spans
from orchestrator.data.tokens import ensure_tokens
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.parts import BackboneSpec, TextContract
from orchestrator.spec.text_encoders import encoder_tokenizer
from orchestrator.tuning.progress import Progress


def tokenize(examples: Examples, backbones: Iterable[BackboneSpec], progress: Progress) -> None:
    """Turn the texts into the tokens of each encoder, once a tokenizer; images are left alone."""
    ensure = ensure_spans if examples.annotated else ensure_tokens
    for backbone in backbones:
        contract = facts_of(backbone).input
        if isinstance(contract, TextContract):
            ensure(
                examples,
                encoder_tokenizer(backbone),
                contract.tokenizer,
                progress=lambda done, total: progress.count("texts tokenized", done, total),
            )
