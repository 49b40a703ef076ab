"""The page as it is served: the real handler on a real port, before real, tiny models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.predictor import load_predictor
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, InputContract, ObjectiveSpec, TaskSpec
from orchestrator.spec.strategy import FeatureExtraction
from serve.endpoint import LocalEndpoint
from serve.entry import Entry, Identity
from serve.handler import Handler
from serve.keys import Keys
from serve.limits import Limits
from serve.pages import PAGES
from serve.worker import Worker
from tests.chromium import Browser
from tests.orchestrator.bundle.small_bundles import image_bundle, text_bundle
from tests.serve.conftest import running
from tests.serve.material import record_of

KEY = "a-key-that-only-this-test-knows"
LABELS = ("cracked cell", "whole cell", "dark cell")


@pytest.fixture(scope="package")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalEndpoint]:
    """A random network that tells images apart, if not for good reasons, and one for texts."""
    folder = tmp_path_factory.mktemp("page")
    experiment = Experiment(
        task=TaskSpec(kind="image-classification", labels=LABELS),
        data_digest="d" * 64,
        backbone=BackboneSpec(name="mobilenetv3_small_050"),
        weights_digest="e" * 64,
        input=InputContract(
            size=64, crop_fraction=0.875, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        strategy=FeatureExtraction(seed=7),
        objective=ObjectiveSpec(),
    )
    record = record_of(experiment)
    return {
        "solar-cells": served(
            "solar-cells", image_bundle(folder / "cells", experiment, record), alias="champion"
        ),
        "words": served("words", text_bundle(folder / "words", experiment, record)),
    }


def served(name: str, bundle: Bundle, *, alias: str | None = None) -> LocalEndpoint:
    """A bundle's model, ready to answer to a name."""
    entry = Entry(Identity(name, "3", alias, bundle.digest), bundle, Limits())
    return LocalEndpoint(entry, load_predictor(bundle, threads=1), Worker(threads=1, queue=8))


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
