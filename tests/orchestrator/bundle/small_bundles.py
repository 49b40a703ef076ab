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
from orchestrator.models.building import build_backbone
from orchestrator.models.classifier import build_classifier_head
from orchestrator.models.head import build_head
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, TaskSpec, TextContract
from orchestrator.spec.record import Record
from orchestrator.spec.strategy import FeatureExtraction
from orchestrator.spec.text_encoders import encoder_tokenizer
from tests.orchestrator.text_material import WORDS, write_encoder

HEAVY = ("torch", "torchvision", "transformers", "timm", "safetensors", "mlflow", "ray")


def image_bundle(folder: Path, experiment: Experiment, record: Record, **changes: Any) -> Bundle:
    """A bundle of a random model whose head is scaled so that answers differ between inputs."""
    spec = BackboneSpec(name=experiment.backbone.name, weights="none")
    backbone = build_backbone(spec, size=64, seed=3).train()
    with torch.no_grad():
        backbone.features(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    pooling = experiment.strategy.pooling
    head = build_head(
        experiment.strategy, n_features=backbone.feature_width(pooling), n_outputs=3, seed=5
    )
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(10)
    return write_bundle(
        folder,
        experiment=experiment,
        record=record.model_copy(update={"experiment": experiment}),
        backbone=backbone,
        head=head,
        test=None,
        samples=[np.zeros((1, 3, 64, 64), np.uint8)],
        created_at="2026-01-31T12:00:00Z",
        **changes,
    )


def text_bundle(folder: Path, experiment: Experiment, record: Record, **params: Any) -> Bundle:
    """A bundle of a random encoder for texts of up to 16 tokens; keywords are of the strategy."""
    spec = BackboneSpec(name="tiny", folder=str(write_encoder(folder.with_name("tiny"))))
    backbone = build_backbone(spec, size=16)
    assert isinstance(backbone.input, TextContract)
    several = experiment.model_copy(
        update={
            "task": TaskSpec(kind="text-classification", labels=tuple(WORDS)),
            "backbone": spec,
            "input": backbone.input,
            "strategy": FeatureExtraction(seed=7, pooling="mean", **params),
        }
    )
    head = build_classifier_head(backbone, several.strategy, n_outputs=len(WORDS))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(30)
    tokenizer = encoder_tokenizer(spec)
    texts = [np.arange(20, 20 + n, dtype=np.int32) for n in (3, 30, 9)]
    frame = Frame.of(tokenizer)
    return write_bundle(
        folder,
        experiment=several,
        record=record.model_copy(update={"experiment": several}),
        backbone=backbone,
        head=head,
        test=None,
        samples=[
            frame.rows(texts, backbone.input, np.full(len(texts), view))
            for view in range(several.strategy.predict_views)
        ],
        created_at="2026-01-31T12:00:00Z",
    )


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
