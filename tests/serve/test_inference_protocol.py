"""KServe's open inference protocol v2, as its clients speak it."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serve.conftest import Call
from tests.serve.material import image_file

INFER = "/v2/models/colours/infer"
RED, BLUE = image_file((250, 10, 10)), image_file((5, 5, 240))


def tensor(data: list[Any], **changes: Any) -> dict[str, Any]:
    one = {"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data, **changes}
    return {"id": "a", "inputs": [one]}


def values(answer: dict[str, Any], name: str) -> Any:
    (found,) = [one for one in answer["outputs"] if one["name"] == name]
    return np.array(found["data"]).reshape(found["shape"])


def test_the_server_and_the_model_say_what_they_are(call: Call) -> None:
    assert call("GET", "/v2").json()["name"] == "transfer-orchestrator"
    assert call("GET", "/v2/health/live").json() == {"live": True}
    assert call("GET", "/v2/health/ready").json()["ready"] is True
    assert call("GET", "/v2/models/colours/ready").json() == {"name": "colours", "ready": True}
    found = call("GET", "/v2/models/colours").json()
    assert (found["name"], found["versions"]) == ("colours", ["3"])
    assert found["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert found["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}


@pytest.mark.parametrize(
    "encoded", [lambda b: base64.b64encode(b).decode(), lambda b: b.decode("latin-1")]
)
def test_encoded_images_are_answered_in_order(call: Call, encoded: Any) -> None:
    answer = call("POST", INFER, json=tensor([encoded(RED), encoded(BLUE)])).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("colours", "3", "a")
    assert values(answer, "label").tolist() == ["red", "blue"]
    probs = values(answer, "probabilities")
    assert probs.argmax(axis=1).tolist() == [0, 2]
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)


def test_pixels_are_answered_as_their_file_is(call: Call) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 40, 30, 3))
    one = tensor(pixels.ravel().tolist(), datatype="UINT8", shape=[1, 40, 30, 3])
    file = io.BytesIO()
    Image.fromarray(pixels[0].astype(np.uint8)).save(file, "PNG")
    as_file = tensor([base64.b64encode(file.getvalue()).decode()])
    both = [
        values(call("POST", INFER, json=body).json(), "probabilities") for body in (one, as_file)
    ]
    np.testing.assert_array_equal(*both)


def test_only_the_tensors_that_are_wanted_come_back(call: Call) -> None:
    body = {**tensor([base64.b64encode(RED).decode()]), "outputs": [{"name": "label"}]}
    assert [one["name"] for one in call("POST", INFER, json=body).json()["outputs"]] == ["label"]


def test_texts_are_answered(call: Call) -> None:
    body = tensor(["a", "a long enough text"], name="text")
    answer = call("POST", "/v2/models/lengths/infer", json=body).json()
    assert values(answer, "label").tolist() == ["short", "long"]
    assert values(answer, "probabilities").tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"inputs": []}, 400),
        ({"inputs": [3]}, 400),
        (tensor(["AAAA"], name="x"), 422),
        (tensor(["AAAA"], datatype="FP32"), 422),
        (tensor(["AAAA"], shape=[2]), 400),
        (tensor(["AAAA"], shape=[-1]), 400),
        (tensor(["AAAA"], shape="a"), 400),
        (tensor(["AAAA"] * 33), 422),
        (tensor(["AAAA"]), 422),
        (tensor(["\u0431"]), 422),
        (tensor([1]), 400),
        (tensor([1, 2], datatype="UINT8", shape=[1, 1, 1, 3]), 400),
        (tensor([1, 2, 300], datatype="UINT8", shape=[1, 1, 1, 3]), 422),
        (tensor([1, 2, "x"], datatype="UINT8", shape=[1, 1, 1, 3]), 400),
        (tensor([1, 2, 10**30], datatype="UINT8", shape=[1, 1, 1, 3]), 400),
        (tensor([1], datatype="UINT8", shape=[1, 1 << 20, 1 << 20, 3]), 422),
        ({**tensor(["AAAA"]), "outputs": [{"name": "x"}]}, 422),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]}, 400),
    ],
)  # fmt: skip
def test_what_the_protocol_does_not_allow_is_refused(
    call: Call, body: dict[str, Any], status: int
) -> None:
    response = call("POST", INFER, json=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
