"""Bundles to serve: a library's network with random weights, and copies under other digests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.manifest import MANIFEST, render, sealed
from orchestrator.bundle.writing import write_bundle
from orchestrator.models.building import build_backbone
from orchestrator.models.classifier import build_classifier_head
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, ObjectiveSpec, TaskSpec
from orchestrator.spec.record import Record
from orchestrator.spec.strategy import FeatureExtraction

LABELS = ("one", "two", "three", "four", "five")


def write_random_bundle(folder: Path, backbone_name: str) -> Bundle:
    """A bundle of a frozen network at its own input size, and of a random head."""
    spec = BackboneSpec(name=backbone_name, weights="none")
    backbone = build_backbone(spec, seed=0)
    size = backbone.input.size
    samples = np.random.default_rng(0).integers(0, 256, (4, 3, size, size), np.uint8)
    experiment = Experiment(
        task=TaskSpec(kind="image-classification", labels=LABELS),
        data_digest="d" * 64,
        backbone=spec,
        weights_digest="none",
        input=backbone.input,
        strategy=FeatureExtraction(),
        objective=ObjectiveSpec(),
    )
    record = Record(
        trial=experiment.id,
        status="finished",
        experiment=experiment,
        phases=(),
        epochs=(),
        best_epoch=1,
        validation={"accuracy": 0.2},
        objective=0.2,
        versions={"torch": torch.__version__},
    )
    return write_bundle(
        folder,
        experiment=experiment,
        record=record,
        backbone=backbone,
        head=build_classifier_head(backbone, experiment.strategy, n_outputs=len(LABELS)),
        test=None,
        samples=[samples],
        created_at="2026-01-31T12:00:00Z",
    )


def copies(bundle: Bundle, folder: Path, n: int) -> list[Bundle]:
    """`n` bundles with the files of one and a temperature each, so that their digests differ."""
    found = []
    for i in range(n):
        copy = folder / f"{i:03d}"
        copy.mkdir(parents=True)
        for name in bundle.manifest.files:
            os.link(bundle.path / name, copy / name)
        manifest = sealed({**bundle.manifest.to_json(), "temperature": 1 + i / 1000})
        (copy / MANIFEST).write_bytes(render(manifest.to_json()))
        found.append(open_bundle(copy))
    return found
