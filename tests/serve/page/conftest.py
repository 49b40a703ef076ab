"""The page as it is served: the real handler on a real port, before a real, tiny model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.predictor import load_predictor
from orchestrator.bundle.writing import write_bundle
from orchestrator.models.building import build_backbone
from orchestrator.models.head import build_head
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, ObjectiveSpec, TaskSpec
from orchestrator.spec.strategy import FeatureExtraction
from serve.endpoint import LocalEndpoint
from serve.entry import Entry, Identity
from serve.handler import Handler
from serve.keys import Keys
from serve.limits import Limits
from serve.pages import PAGES
from serve.worker import Worker
from tests.chromium import Browser
from tests.serve.conftest import running
from tests.serve.material import IMAGES, record_of

KEY = "a-key-that-only-this-test-knows"
LABELS = ("cracked cell", "whole cell", "dark cell")


@pytest.fixture(scope="package")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a random network that tells images apart, if not for good reasons."""
    experiment = Experiment(
        task=TaskSpec(kind="image-classification", labels=LABELS),
        data_digest="d" * 64,
        backbone=BackboneSpec(name="mobilenetv3_small_050"),
        weights_digest="e" * 64,
        input=IMAGES,
        strategy=FeatureExtraction(seed=7),
        objective=ObjectiveSpec(),
    )
    spec = BackboneSpec(name=experiment.backbone.name, weights="none")
    backbone = build_backbone(spec, size=IMAGES.size, seed=3)
    width = backbone.feature_width(experiment.strategy.pooling)
    head = build_head(experiment.strategy, n_features=width, n_outputs=len(LABELS), seed=5)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(20)  # so that answers differ between images
    return write_bundle(
        tmp_path_factory.mktemp("page") / "cells",
        experiment=experiment,
        record=record_of(experiment),
        backbone=backbone,
        head=head,
        test=None,
        samples=[np.zeros((1, 3, IMAGES.size, IMAGES.size), np.uint8)],
        created_at="2026-01-31T12:00:00Z",
    )


@pytest.fixture(scope="package")
def endpoints(plain: Handler, cells: Bundle) -> dict[str, LocalEndpoint]:
    """The real model, and the texts of the other tests."""
    entry = Entry(Identity("solar-cells", "3", "champion", cells.digest), cells, Limits())
    predictor = load_predictor(cells, threads=1)
    real = LocalEndpoint(entry, predictor, Worker(threads=1, queue=8))
    lengths = plain.endpoints["lengths"]
    assert isinstance(lengths, LocalEndpoint)
    return {"solar-cells": real, "lengths": lengths}


@pytest.fixture(scope="package")
def url(endpoints: dict[str, LocalEndpoint]) -> Iterator[str]:
    """Where the page is."""
    handler = Handler(endpoints, limits=Limits(), keys=Keys({}), routes=PAGES)
    with running(handler) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def guarded_url(endpoints: dict[str, LocalEndpoint]) -> Iterator[str]:
    """The same, which wants a key."""
    keys = Keys({"me": hashlib.sha256(KEY.encode()).hexdigest()})
    handler = Handler(endpoints, limits=Limits(), keys=keys, routes=PAGES)
    with running(handler) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
