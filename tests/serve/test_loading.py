"""Bundles of one frozen trunk are loaded onto it; each still answers as itself, after a probe."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.bundle.predictor import load_predictor
from orchestrator.bundle.shared_trunk import TrunkPredictor
from orchestrator.errors import BundleError
from orchestrator.spec.experiment import Experiment
from serve.limits import Limits
from serve.loading import Model, loaded
from serve.pinning import fetched, pinned
from serve.worker import Worker
from tests.orchestrator.bundle.small_bundles import image_bundle
from tests.serve.material import COLOURS, image_file, network_experiment, plain_bundle, record_of

LIMITS = Limits()


@pytest.fixture
def experiment() -> Experiment:
    return network_experiment()


def test_models_of_one_trunk_share_it_and_answer_as_alone(
    tmp_path: Path, experiment: Experiment
) -> None:
    models = []
    for name, temperature in (("one", 1.0), ("two", 2.0)):
        image_bundle(tmp_path / name, experiment, record_of(experiment), temperature=temperature)
        pin = pinned(str(tmp_path / name), name=name, registry=None)
        models.append(Model(pin))
    worker = Worker(threads=1, queue=1)
    endpoints = loaded(models, limits=LIMITS, worker=worker)
    one, two = (endpoints[model].predictor for model in models)
    assert isinstance(one, TrunkPredictor)
    assert isinstance(two, TrunkPredictor)
    assert one.trunk is two.trunk
    for model in models:
        (alone,) = load_predictor(fetched(model.pin)).predict([image_file()])
        (shared,) = endpoints[model].predictor.predict([image_file()])
        assert shared["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
    (single,) = loaded(models[:1], limits=LIMITS, worker=worker).values()
    assert not isinstance(single.predictor, TrunkPredictor)


def test_a_model_that_cannot_answer_is_not_loaded(tmp_path: Path) -> None:
    plain_bundle(tmp_path / "broken", kind="image-classification", labels=COLOURS)
    pin = pinned(str(tmp_path / "broken"), name="broken", registry=None)
    with pytest.raises(BundleError):
        loaded([Model(pin)], limits=LIMITS, worker=Worker(threads=1, queue=1))
