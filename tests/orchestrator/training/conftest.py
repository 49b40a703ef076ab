"""One small data set, its features, and surroundings for trials on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.data.examples import Examples
from orchestrator.features.store import FeatureStore
from orchestrator.spec.parts import BackboneSpec
from tests.orchestrator.training.small_texts import small_encoder, small_texts
from tests.orchestrator.training.small_trials import MakeIO, write_examples


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """13 training and 7 validation pictures: batches of 4 leave a last one of 1."""
    return write_examples(tmp_path_factory.mktemp("data") / "set", n_train=13, n_validation=7)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("features"))


@pytest.fixture
def make_io(examples: Examples, store: FeatureStore, tmp_path: Path) -> MakeIO:
    return MakeIO(examples, store, tmp_path)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> BackboneSpec:
    return small_encoder(tmp_path_factory.mktemp("encoder"), dropout=0.1)


@pytest.fixture(scope="session")
def plain_encoder(tmp_path_factory: pytest.TempPathFactory) -> BackboneSpec:
    """The same without dropout: the same units, however the batches are computed."""
    return small_encoder(tmp_path_factory.mktemp("plain"), dropout=0.0)


@pytest.fixture(scope="session")
def texts(encoder: BackboneSpec, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return small_texts(tmp_path_factory.mktemp("texts"), encoder)


@pytest.fixture
def make_text_io(texts: Examples, store: FeatureStore, tmp_path: Path) -> MakeIO:
    return MakeIO(texts, store, tmp_path)
