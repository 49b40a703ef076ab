"""A CLIP behind HTTP: labels in the request, as the interface says."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.bundle.clip_bundles import write_clip_bundle
from orchestrator.spec.clip_models import parse_clip
from orchestrator.spec.prompts import LabelSet
from serve.handler import Handler
from serve.keys import Keys
from serve.limits import Limits
from serve.loading import Model, loaded
from serve.pinning import pinned
from serve.worker import Worker
from tests.orchestrator.clip_material import unseen_file
from tests.serve.conftest import ask

OWN = LabelSet(labels=("red circle", "blue ring", "white bar"))
Call = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def handler(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Handler:
    """The application of one CLIP, `shapes`, loaded as a replica loads it."""
    folder = tmp_path_factory.mktemp("clip") / "bundle"
    write_clip_bundle(folder, parse_clip(str(clip_folder), base=Path("/")), OWN)
    pin = pinned(str(folder), name="shapes", registry=None)
    limits = Limits()
    model = Model(pin)
    endpoints = loaded([model], limits=limits, worker=Worker(threads=1, queue=limits.queue))
    return Handler({"shapes": endpoints[model]}, limits=limits, keys=Keys({}))


@pytest.fixture(scope="module")
def picture() -> str:
    """A green square, which the CLIP has never seen, in base64."""
    return base64.b64encode(unseen_file(("green", "square"))).decode()


@pytest.fixture
def predict(handler: Handler, picture: str) -> Callable[..., httpx.Response]:
    def send(**options: Any) -> httpx.Response:
        body = {"inputs": [{"image": picture}], **options}
        return asyncio.run(ask(handler, "POST", "/v1/models/shapes:predict", json=body))

    return send


def test_a_request_brings_its_own_labels_or_uses_the_bundles(predict: Call) -> None:
    own = predict().json()["answers"][0]
    assert set(own["probabilities"]) == set(OWN.labels)
    labels = ["red ring", "green square", "yellow cross", "blue bar"]
    found = predict(labels=labels).json()["answers"][0]
    assert found["label"] == "green square"
    assert set(found["probabilities"]) == set(labels)
    other = predict(labels=labels, templates=["a drawing of a {}."]).json()["answers"][0]
    assert other["label"] == "green square"
    assert other["probabilities"] != found["probabilities"]


def test_an_answer_under_the_requests_labels_can_be_explained(
    handler: Handler, picture: str
) -> None:
    body = {"inputs": [{"image": picture}], "labels": ["red ring", "green square"]}
    found = asyncio.run(ask(handler, "POST", "/v1/models/shapes:explain", json=body)).json()
    assert found["label"] == "green square"
    assert len(found["map"]["values"]) == found["map"]["rows"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": ["green square"]}, "alone is always right"),
        ({"labels": ["red " * 30, "green"]}, "nothing is cut off"),
        ({"labels": ["green", "green"]}, "green"),
        ({"labels": ["green", "red"], "templates": ["no hole"]}, "{}"),
    ],
)
def test_labels_that_cannot_be_are_the_clients_fault(
    predict: Call, options: dict[str, Any], said: str
) -> None:
    response = predict(**options)
    assert response.status_code == 422
    assert said in response.json()["detail"]


def test_the_models_listing_says_that_it_takes_labels(handler: Handler) -> None:
    told = asyncio.run(ask(handler, "GET", "/v1/models/shapes")).json()
    assert told["zero_shot"] is True
    assert told["task"] == "zero-shot-image-classification"


def test_more_prompts_than_are_taken_are_refused_before_any_is_embedded(predict: Call) -> None:
    labels = [str(i) for i in range(300)]
    for options in ({}, {"templates": [f"{i} {{}}" for i in range(100)]}):
        response = predict(labels=labels, **options)
        assert response.status_code == 422
        assert response.json()["type"] == "/problems/too-many"
        assert "At most 2,000 are taken" in response.json()["detail"]


def test_what_a_request_leaves_open_is_as_the_bundle_has_it(
    clip_folder: Path, tmp_path: Path, picture: str
) -> None:
    spec = parse_clip(str(clip_folder), base=Path("/"))
    plain = LabelSet(labels=OWN.labels, templates="plain")
    described = LabelSet(
        labels=("ok", "ring"), templates="plain", descriptions={"ok": ("green square",)}
    )
    models = []
    for name, labels in (("plain", plain), ("described", described), ("default", OWN)):
        write_clip_bundle(tmp_path / name, spec, labels)
        models.append(Model(pinned(str(tmp_path / name), name=name, registry=None)))
    limits = Limits()
    found = loaded(models, limits=limits, worker=Worker(threads=1, queue=limits.queue))
    handler = Handler({one.entry.name: one for one in found.values()}, limits=limits, keys=Keys({}))

    def told(name: str, labels: list[str], **options: Any) -> Any:
        body = {"inputs": [{"image": picture}], "labels": labels, **options}
        response = asyncio.run(ask(handler, "POST", f"/v1/models/{name}:predict", json=body))
        return list(response.json()["answers"][0]["probabilities"].values())

    pair = ["green square", "red ring"]
    assert told("plain", pair) == told("default", pair, templates=["a photo of a {}."])
    assert told("plain", pair) != told("default", pair)
    assert told("described", ["ok", "red ring"]) == told("plain", pair)
