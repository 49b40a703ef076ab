"""Bundles of small random models, and what a process without torch makes of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.writing import write_bundle
from orchestrator.data.tokens import Frame
from orchestrator.models.backbone import Backbone
from orchestrator.models.building import build_backbone
from orchestrator.models.classifier import build_classifier_head
from orchestrator.models.freezing import last_stages
from orchestrator.models.head import Head
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, TaskSpec, TextContract
from orchestrator.spec.record import Record
from orchestrator.spec.strategy import FeatureExtraction, Partial, StrategyParams
from orchestrator.spec.text_encoders import encoder_tokenizer
from tests.orchestrator.text_material import WORDS, write_encoder

HEAVY = ("torch", "torchvision", "transformers", "timm", "safetensors", "mlflow", "ray")


def image_bundle(
    folder: Path, experiment: Experiment, record: Record, *, seed: int = 5, **changes: Any
) -> Bundle:
    """A bundle of a random model whose head is scaled so that answers differ between inputs.

    Args:
        folder: Where.
        experiment: Its backbone is the same in all bundles, but for what the strategy trains.
        record: Its own experiment is replaced.
        seed: Of what is trained.
        changes: Further arguments of `write_bundle`.
    """
    spec = BackboneSpec(name=experiment.backbone.name, weights="none")
    backbone = build_backbone(spec, size=64, seed=3).train()
    with torch.no_grad():
        backbone.features(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return write_bundle(
        folder,
        experiment=experiment,
        record=record.model_copy(update={"experiment": experiment}),
        backbone=_trained(backbone, experiment.strategy, seed),
        head=_head(backbone, experiment, seed, scale=10),
        test=None,
        samples=[np.zeros((1, 3, 64, 64), np.uint8)],
        created_at="2026-01-31T12:00:00Z",
        **changes,
    )


def text_bundle(
    folder: Path,
    experiment: Experiment,
    record: Record,
    *,
    strategy: StrategyParams | None = None,
    seed: int = 5,
) -> Bundle:
    """As `image_bundle`, of a tiny encoder for texts of up to 16 tokens."""
    spec = BackboneSpec(name="tiny", folder=str(write_encoder(folder.with_name("tiny"))))
    backbone = build_backbone(spec, size=16)
    assert isinstance(backbone.input, TextContract)
    of_texts = experiment.model_copy(
        update={
            "task": TaskSpec(kind="text-classification", labels=tuple(WORDS)),
            "backbone": spec,
            "input": backbone.input,
            "strategy": strategy or FeatureExtraction(seed=7, pooling="mean"),
        }
    )
    tokenizer = encoder_tokenizer(spec)
    texts = [np.arange(20, 20 + n, dtype=np.int32) for n in (3, 30, 9)]
    frame = Frame.of(tokenizer)
    return write_bundle(
        folder,
        experiment=of_texts,
        record=record.model_copy(update={"experiment": of_texts}),
        backbone=_trained(backbone, of_texts.strategy, seed),
        head=_head(backbone, of_texts, seed, scale=30),
        test=None,
        samples=[
            frame.rows(texts, backbone.input, np.full(len(texts), view))
            for view in range(of_texts.strategy.predict_views)
        ],
        created_at="2026-01-31T12:00:00Z",
    )


@torch.no_grad()
def _trained(backbone: Backbone, strategy: StrategyParams, seed: int) -> Backbone:
    """The backbone with what partial fine-tuning moves moved at random."""
    generator = torch.Generator().manual_seed(seed)
    for stage in last_stages(backbone, strategy.unfreeze) if isinstance(strategy, Partial) else ():
        for parameter in backbone.parameters_of(stage):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return backbone


@torch.no_grad()
def _head(backbone: Backbone, experiment: Experiment, seed: int, *, scale: float) -> Head:
    strategy = experiment.strategy.model_copy(update={"seed": seed})
    head = build_classifier_head(backbone, strategy, n_outputs=len(experiment.task.labels))
    for parameter in head.parameters():
        parameter.mul_(scale)
    return head


def answered_in_a_new_process(bundle: Bundle, text: str) -> tuple[dict[str, Any], list[str]]:
    """An input's answer from a process of its own, and what heavy libraries that one imported."""
    script = f"""
import json, sys
from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.predictor import load_predictor
predictor = load_predictor(open_bundle({str(bundle.path)!r}))
(answer,) = predictor.predict([{text!r}])
predictor.embeddings(predictor.preparer.batch([predictor.preparer.read({text!r})]))
print(json.dumps([answer, sorted(set({HEAVY!r}) & set(sys.modules))]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer, imported = json.loads(done.stdout)
    return answer, imported
