"""KServe's open inference protocol v2, as its clients speak it."""

from __future__ import annotations

import base64
import io
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.spec.parts import TaskKind
from serve import inference_protocol
from serve.entry import Entry, Identity
from serve.items import Question
from serve.limits import Limits
from serve.problems import Refusal
from tests.serve.conftest import Call
from tests.serve.material import image_file, plain_bundle

INFER = "/v2/models/colours/infer"
RED, BLUE = image_file((250, 10, 10)), image_file((5, 5, 240))


def tensor(data: list[Any], **changes: Any) -> dict[str, Any]:
    one = {"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data, **changes}
    return {"id": "a", "inputs": [one]}


def values(answer: dict[str, Any], name: str) -> Any:
    (found,) = [one for one in answer["outputs"] if one["name"] == name]
    return np.array(found["data"]).reshape(found["shape"])


def test_the_server_and_the_model_say_what_they_are(call: Call) -> None:
    assert call("GET", "/v2").json() == {
        "name": "transfer-orchestrator",
        "version": version("transfer-orchestrator"),
        "extensions": [],
    }
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


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ([{"name": "label"}], ["label"]),
        ([], ["probabilities", "label"]),
        (None, ["probabilities", "label"]),
    ],
)
def test_only_the_tensors_that_are_wanted_come_back(
    call: Call, wanted: Any, told: list[str]
) -> None:
    body = {**tensor([base64.b64encode(RED).decode()]), "outputs": wanted}
    assert [one["name"] for one in call("POST", INFER, json=body).json()["outputs"]] == told


def test_values_may_be_nested_as_their_shape_is(call: Call) -> None:
    one, other = (base64.b64encode(file).decode() for file in (RED, BLUE))
    answer = call("POST", INFER, json=tensor([[one], [other]], shape=[2, 1])).json()
    assert values(answer, "label").tolist() == ["red", "blue"]
    pixels = [[[[250, 10, 10]] * 4] * 4]
    nested = tensor(pixels, datatype="UINT8", shape=[1, 4, 4, 3])
    assert values(call("POST", INFER, json=nested).json(), "label").tolist() == ["red"]


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
        (tensor(["AAAA"], shape=[1] * 9), 422),
        (tensor(["AAAA"], shape=[2**31 - 1] * 8), 400),
        (tensor(["AAAA"], shape=[2**31 - 1] * 200_000), 422),
        (tensor(["AAAA"] * 33), 422),
        (tensor(["AAAA"]), 422),
        (tensor(["\u0431"]), 422),
        (tensor([1]), 400),
        (tensor([1, 2], datatype="UINT8", shape=[1, 1, 1, 3]), 400),
        (tensor([1, 2, 300], datatype="UINT8", shape=[1, 1, 1, 3]), 422),
        (tensor([1, 2, 1.9], datatype="UINT8", shape=[1, 1, 1, 3]), 400),
        (tensor([True] * 3, datatype="UINT8", shape=[1, 1, 1, 3]), 400),
        (tensor([["AAAA"], "AAAA"], shape=[2, 1]), 400),
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
    assert response.json()["detail"] in response.json()["error"]
    assert len(response.content) < 2000


def test_only_a_version_that_is_served_answers(call: Call) -> None:
    body = tensor([base64.b64encode(RED).decode()])
    named = "/v2/models/colours/versions/3"
    assert call("POST", f"{named}/infer", json=body).json()["model_version"] == "3"
    assert call("GET", named).json()["versions"] == ["3"]
    assert call("GET", f"{named}/ready").status_code == 200
    other = "/v2/models/colours/versions/99"
    for response in (
        call("POST", f"{other}/infer", json=body),
        call("GET", other),
        call("GET", f"{other}/ready"),
    ):
        assert response.status_code == 404
        assert "only 3" in response.json()["detail"]


def entry_of(folder: Path, kind: TaskKind, labels: tuple[str, ...]) -> Entry:
    bundle = plain_bundle(folder, kind=kind, labels=labels)
    return Entry(Identity("spans", "2", None, bundle.digest), bundle, Limits())


def questions(*pairs: tuple[str, str], **changes: Any) -> bytes:
    columns = zip(("question", "context"), zip(*pairs, strict=True), strict=True)
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [len(column)], "data": column, **changes}
        for name, column in columns
    ]
    return json.dumps({"inputs": inputs}).encode()


def test_a_question_and_its_context_are_two_tensors(tmp_path: Path) -> None:
    entry = entry_of(tmp_path / "qa", "question-answering", ())
    told = inference_protocol.metadata(entry, versions=["2"])
    assert [one["name"] for one in told["inputs"]] == ["question", "context"]
    assert [one["name"] for one in told["outputs"]] == ["answer", "score"]

    asked = inference_protocol.parse(
        questions(("When?", "In 1889."), ("Who?", "Eiffel.")), entry=entry
    )
    assert asked.submission.items == (Question("When?", "In 1889."), Question("Who?", "Eiffel."))

    answers = [
        {"answer": "1889", "start": 3, "end": 7, "score": 0.75},
        {"answer": "", "score": 0.5},
    ]
    outputs = inference_protocol.rendered(answers, asked, entry=entry)["outputs"]
    assert outputs == [
        {"name": "answer", "datatype": "BYTES", "shape": [2], "data": ["1889", ""]},
        {"name": "score", "datatype": "FP32", "shape": [2], "data": [0.75, 0.5]},
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"inputs": []}', "takes 2 tensors, `question` and `context`"),
        (questions(("a", "b"), name="question"), "twice"),
        (questions(("a", "b"), name="text"), "no tensor 'text'"),
        (questions(("a", "b"), datatype="FP32"), "Use BYTES"),
        (questions((" ", "b")), "question is empty"),
        (b'{"inputs": [{"name": ["question"]}, {"name": "context"}]}', "no tensor"),
    ],
)
def test_questions_that_cannot_be_are_refused(tmp_path: Path, body: bytes, reason: str) -> None:
    entry = entry_of(tmp_path / "qa", "question-answering", ())
    with pytest.raises(Refusal, match=reason):
        inference_protocol.parse(body, entry=entry)


def test_as_many_contexts_as_questions(tmp_path: Path) -> None:
    entry = entry_of(tmp_path / "qa", "question-answering", ())
    body = json.loads(questions(("a", "b"), ("c", "d")))
    body["inputs"][1].update(shape=[1], data=["b"])
    with pytest.raises(Refusal, match="as many contexts as questions"):
        inference_protocol.parse(json.dumps(body).encode(), entry=entry)


def test_entities_are_told_as_json(tmp_path: Path) -> None:
    entry = entry_of(tmp_path / "ner", "token-classification", ("O", "B-PLACE"))
    (output,) = inference_protocol.metadata(entry, versions=["2"])["outputs"]
    assert output == {"name": "entities", "datatype": "BYTES", "shape": [-1]}

    body = json.dumps(tensor(["Über Köln"], name="text")).encode()
    asked = inference_protocol.parse(body, entry=entry)
    found = [{"label": "PLACE", "start": 5, "end": 9, "text": "Köln", "score": 0.9}]
    (output,) = inference_protocol.rendered([{"entities": found}], asked, entry=entry)["outputs"]
    assert output["shape"] == [1]
    assert json.loads(output["data"][0]) == found
