"""A canary answers its share and costs no request its answer; a shadow only answers beside."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve import metrics
from serve.endpoint import LocalEndpoint
from serve.entry import Entry, Identity
from serve.handler import Handler
from serve.keys import Keys
from serve.limits import Limits
from serve.metrics import Metrics, total_of
from serve.split import SplitEndpoint
from serve.worker import Worker
from tests.serve.conftest import ask
from tests.serve.material import COLOURS, POISON, Colours, image_file, plain_bundle

RED = image_file((250, 10, 10))


class Reversed(Colours):
    """Takes the weakest colour for the strongest."""

    def probabilities(self, views: Sequence[Any]) -> Any:
        return super().probabilities(views)[:, ::-1]


class Slow(Colours):
    """Takes longer than it has."""

    def probabilities(self, views: Sequence[Any]) -> Any:
        time.sleep(1.5)
        return super().probabilities(views)


class Broken(Colours):
    """Fails on every image."""

    def probabilities(self, views: Sequence[Any]) -> Any:
        raise RuntimeError("out of memory")


def split(
    folder: Path,
    candidate: type[Colours],
    share: float,
    *,
    current: type[Colours] = Colours,
    answer_s: float = 30,
) -> tuple[Handler, SplitEndpoint]:
    limits = Limits(answer_s=answer_s)
    counted = Metrics()
    endpoints = []
    for version, kind in (("1", current), ("2", candidate)):
        worker = Worker(threads=2, queue=64)
        bundle = plain_bundle(
            folder / version, kind="image-classification", labels=COLOURS, salt=version
        )
        entry = Entry(Identity("colours", version, None, bundle.digest), bundle, limits)
        endpoints.append(LocalEndpoint(entry, kind(bundle), worker))  # type: ignore[arg-type]
    both = SplitEndpoint(*endpoints, share=share, counted=counted, rng=random.Random(0))
    return Handler({"colours": both}, limits=limits, keys=Keys({}), counted=counted), both


def answers(
    handler: Handler, both: SplitEndpoint, n: int, image: bytes = RED
) -> tuple[list[httpx.Response], dict[str, Any]]:
    """The responses to one image asked `n` times, and what is told of the two versions after."""

    async def all_of_them() -> tuple[list[httpx.Response], dict[str, Any]]:
        found = []
        for _ in range(n):
            found.append(await ask(handler, "POST", "/v1/models/colours:predict", content=image))
            await both.settled()
        details = (await ask(handler, "GET", "/v1/models/colours")).json()
        return found, details["candidate"]

    return asyncio.run(all_of_them())


def test_a_canary_answers_its_share_and_every_answer_is_of_one_version(tmp_path: Path) -> None:
    found, told = answers(*split(tmp_path, Reversed, 0.3), 200)
    by_version: dict[str, set[str]] = {}
    for response in found:
        answer = response.json()
        assert response.headers["x-model-version"] == answer["version"]
        by_version.setdefault(answer["version"], set()).add(answer["answers"][0]["label"])
    assert by_version == {"1": {"red"}, "2": {"blue"}}
    n_canary = sum(r.json()["version"] == "2" for r in found)
    assert 40 <= n_canary <= 80  # 60 are expected; four deviations
    assert (told["mode"], told["share"], told["version"]) == ("canary", 0.3, "2")
    assert told["agreement"] == 0
    assert told["versions"]["2"]["requests"] == n_canary
    assert told["versions"]["1"]["requests"] == 200 - n_canary


def test_versions_that_answer_alike_agree(tmp_path: Path) -> None:
    _, told = answers(*split(tmp_path, Colours, 0.5), 20)
    assert told["agreement"] == 1
    assert told["compared"]["same"] > 0


def test_a_canary_that_fails_costs_no_request_its_answer(tmp_path: Path) -> None:
    found, told = answers(*split(tmp_path, Broken, 0.5), 40)
    assert {response.status_code for response in found} == {200}
    assert {response.json()["version"] for response in found} == {"1"}
    assert told["uncompared"]["failed"] > 10
    assert told["versions"]["2"]["errors"] == told["uncompared"]["failed"]
    assert told["versions"]["1"]["errors"] == 0


class Moody(Colours):
    """Fails on images that are mostly blue."""

    def probabilities(self, views: Sequence[Any]) -> Any:
        found = super().probabilities(views)
        if (found.argmax(axis=1) == 2).any():
            raise RuntimeError("out of memory")
        return found


def test_a_canary_that_fails_on_one_of_several_inputs_costs_none_its_answer(tmp_path: Path) -> None:
    images = [base64.b64encode(one).decode() for one in (RED, image_file((10, 10, 250)))]
    handler, both = split(tmp_path, Moody, 0.99)

    async def asked() -> tuple[dict[str, Any], dict[str, Any]]:
        body = {"inputs": [{"image": image} for image in images]}
        answer = await ask(handler, "POST", "/v1/models/colours:predict", json=body)
        await both.settled()
        details = await ask(handler, "GET", "/v1/models/colours")
        return answer.json(), details.json()["candidate"]

    answer, told = asyncio.run(asked())
    assert answer["version"] == "1"
    assert [one["label"] for one in answer["answers"]] == ["red", "blue"]
    assert told["uncompared"] == {"failed": 1, "skipped": 0}


def test_a_canary_that_hangs_costs_no_request_its_answer(tmp_path: Path) -> None:
    found, told = answers(*split(tmp_path, Slow, 0.9, answer_s=1), 4)
    assert {response.status_code for response in found} == {200}
    assert {response.json()["version"] for response in found} == {"1"}
    assert told["uncompared"]["failed"] + told["uncompared"]["skipped"] > 0


def test_a_canary_that_is_overloaded_costs_no_request_its_answer(tmp_path: Path) -> None:
    handler, both = split(tmp_path, Colours, 0.9)
    both.candidate.worker = Worker(threads=1, queue=0)  # type: ignore[attr-defined]
    both.candidate.worker._taken = 1  # type: ignore[attr-defined]
    found, told = answers(handler, both, 10)
    assert {(r.status_code, r.json()["version"]) for r in found} == {(200, "1")}
    assert told["uncompared"]["skipped"] > 0
    assert told["uncompared"]["failed"] == 0


def test_a_trusted_version_that_fails_beside_its_canary_is_not_the_canarys_fault(
    tmp_path: Path,
) -> None:
    found, told = answers(*split(tmp_path, Colours, 0.99, current=Broken), 8)
    by_canary = sum(r.status_code == 200 for r in found)
    assert by_canary > 0
    assert told["compared"] == {"same": 0, "different": 0}
    assert told["uncompared"] == {"failed": 0, "skipped": by_canary}
    assert told["versions"]["2"]["errors"] == 0


@pytest.mark.parametrize("share", [0.0, 0.99])
def test_the_open_inference_protocol_is_split_and_compared_too(
    tmp_path: Path, share: float
) -> None:
    handler, both = split(tmp_path, Reversed, share)
    image = base64.b64encode(RED).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [image]}
    body = {"inputs": [tensor], "outputs": [{"name": "probabilities"}]}

    async def infer(path: str) -> dict[str, Any]:
        found = (await ask(handler, "POST", f"/v2/models/colours{path}/infer", json=body)).json()
        await both.settled()
        return found

    async def all_of_it() -> Any:
        versions = {(await infer(""))["model_version"] for _ in range(6)}
        named = [(await infer(f"/versions/{one}"))["model_version"] for one in ("1", "2")]
        listed = (await ask(handler, "GET", "/v2/models/colours")).json()["versions"]
        details = (await ask(handler, "GET", "/v1/models/colours")).json()
        return versions, named, listed, details["candidate"]["compared"]["different"]

    versions, named, listed, different = asyncio.run(all_of_it())
    assert ("2" in versions) == (share > 0)
    assert named == listed == ["1", "2"]
    assert different >= 5


def test_a_candidate_that_fails_its_probe_leaves_the_model_ready(tmp_path: Path) -> None:
    handler, _ = split(tmp_path, Broken, 0.5)
    assert asyncio.run(ask(handler, "GET", "/readyz")).status_code == 200


def test_a_shadow_never_answers_and_is_compared(tmp_path: Path) -> None:
    found, told = answers(*split(tmp_path, Reversed, 0.0), 20)
    assert {response.json()["version"] for response in found} == {"1"}
    assert told["mode"] == "shadow"
    assert told["compared"] == {"same": 0, "different": 20}
    assert told["uncompared"] == {"failed": 0, "skipped": 0}
    assert told["versions"]["2"]["requests"] == 0
    assert told["versions"]["2"]["mean_ms"] > 0


def test_a_bad_input_is_the_clients_fault_whoever_answers(tmp_path: Path) -> None:
    handler, both = split(tmp_path, Colours, 0.5)
    found, told = answers(handler, both, 20, image=b"no image")
    assert {response.status_code for response in found} == {422}
    assert told["uncompared"]["failed"] == 0
    assert total_of(handler.counted.snapshot(), metrics.REQUESTS, outcome="failed") == 0


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_breaks_both_versions_is_told_once(tmp_path: Path, share: float) -> None:
    found, _ = answers(*split(tmp_path, Colours, share), 4, image=image_file(POISON))
    assert {response.status_code for response in found} == {500}
