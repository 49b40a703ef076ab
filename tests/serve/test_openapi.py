"""The OpenAPI document says what the endpoint does: no more, no less."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from serve.contract import ModelDetails, Prediction
from serve.handler import ROUTES, Handler, Route
from serve.openapi import OPERATIONS, document
from serve.pages import FILES, PAGES
from serve.problems import KINDS
from tests.serve.conftest import Call
from tests.serve.material import image_file

RED = image_file((250, 10, 10))
MODEL = "/v1/models/colours"
# Style, script and icon of the page are its own business.
DESCRIBED = (*(r for r in PAGES if not any(map(r.path.fullmatch, [*FILES][1:]))), *ROUTES)
IN_V2 = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a text"]}]}


def schema_of(reference: dict[str, Any]) -> dict[str, Any]:
    """A schema with everything that it refers to."""
    return {**reference, "components": document()["components"]}


def test_the_document_is_openapi_3_1() -> None:
    assert [str(fault) for fault in OpenAPIV31SpecValidator(document()).iter_errors()] == []
    assert json.loads(json.dumps(document())) == document()


def test_every_operation_has_a_name_of_its_own() -> None:
    names = [one["operationId"] for path in document()["paths"].values() for one in path.values()]

    assert len(set(names)) == len(names) == len(OPERATIONS)


def actual(routes: tuple[Route, ...]) -> set[tuple[str, str]]:
    """Method and path of what is routed, written as the document has paths."""
    found = set()
    for route in routes:
        path = re.sub(r"\(\?P<name>[^)]*\)", "{name}", route.path.pattern)
        path = path.replace("\\", "")
        versions = "(/versions/(?P<version>[0-9A-Za-z]+))?"
        verbs = re.search(r"\(\?P<verb>([^)]*)\)", path)
        for verb in verbs[1].split("|") if verbs else ("",):
            whole = path.replace(verbs[0], verb) if verbs else path
            named = {whole.replace(versions, one) for one in ("", "/versions/{version}")}
            found |= {(method.lower(), one) for method in route.actions for one in named}
    return found


def test_what_is_routed_is_described_and_what_is_described_is_routed() -> None:
    described = {
        (method, path) for path, methods in document()["paths"].items() for method in methods
    }

    assert described == actual(DESCRIBED)


def test_what_is_told_without_a_key_is_described_so() -> None:
    open_paths = {path for route in DESCRIBED if route.open for _, path in actual((route,))}

    assert open_paths == {one.path for one in OPERATIONS if one.open}


def test_every_problem_that_exists_is_described_somewhere() -> None:
    text = json.dumps(document()["paths"])

    # a path that is not described can have no description of its problem
    assert [slug for slug in KINDS if f"`{slug}`" not in text] == ["unknown-path"]


@pytest.mark.parametrize(
    ("method", "path", "described", "options"),
    [
        ("POST", f"{MODEL}:predict", "/v1/models/{name}:predict", {"content": RED}),
        ("POST", f"{MODEL}:embed", "/v1/models/{name}:embed", {"content": RED}),
        ("GET", "/v1/models", "/v1/models", {}),
        ("GET", MODEL, "/v1/models/{name}", {}),
        ("GET", "/healthz", "/healthz", {}),
        ("GET", "/readyz", "/readyz", {}),
        ("GET", "/v2", "/v2", {}),
        ("GET", "/v2/health/live", "/v2/health/live", {}),
        ("GET", "/v2/health/ready", "/v2/health/ready", {}),
        ("GET", "/v2/models/colours", "/v2/models/{name}", {}),
        ("GET", "/v2/models/colours/ready", "/v2/models/{name}/ready", {}),
        ("GET", "/v2/models/colours/versions/3", "/v2/models/{name}/versions/{version}", {}),
        ("POST", "/v2/models/lengths/infer", "/v2/models/{name}/infer", {"json": IN_V2}),
    ],
)
def test_an_answer_is_as_described(
    call: Call, method: str, path: str, described: str, options: dict[str, Any]
) -> None:
    response = call(method, path, **options)

    assert response.status_code == 200, response.text
    told = document()["paths"][described][method.lower()]["responses"]["200"]
    jsonschema.validate(response.json(), schema_of(told["content"]["application/json"]["schema"]))
    assert {name.lower() for name in told["headers"]} <= set(response.headers)
    knows = set(_properties(told["content"]["application/json"]["schema"]))
    assert set(response.json()) <= knows, "the endpoint tells what the contract does not"


def _properties(reference: dict[str, Any]) -> dict[str, Any]:
    name = reference["$ref"].rpartition("/")[2]
    properties: dict[str, Any] = document()["components"]["schemas"][name]["properties"]
    return properties


@pytest.mark.parametrize(
    ("method", "path", "described", "options"),
    [
        ("POST", "/v1/models/none:predict", "/v1/models/{name}:predict", {"content": RED}),
        ("POST", f"{MODEL}:predict", "/v1/models/{name}:predict", {"content": RED[:60]}),
        ("POST", f"{MODEL}:predict", "/v1/models/{name}:predict", {"json": {"input": []}}),
        (
            "POST",
            f"{MODEL}:predict",
            "/v1/models/{name}:predict",
            {"files": [("input", RED[:60]), ("input", b"x")]},
        ),
        ("POST", "/v1/models/lengths:embed", "/v1/models/{name}:embed", {"json": {"inputs": [1]}}),
        ("GET", "/v1/models/none", "/v1/models/{name}", {}),
        ("POST", "/v2/models/colours/infer", "/v2/models/{name}/infer", {"json": {}}),
        ("GET", "/v2/models/colours/versions/4", "/v2/models/{name}/versions/{version}", {}),
    ],
)
def test_a_problem_is_as_described(
    call: Call, method: str, path: str, described: str, options: dict[str, Any]
) -> None:
    response = call(method, path, **options)

    told = document()["paths"][described][method.lower()]["responses"]
    _is_described(response, told[str(response.status_code)])


def _is_described(response: httpx.Response, told: dict[str, Any]) -> None:
    schema = schema_of(told["content"]["application/problem+json"]["schema"])
    jsonschema.validate(response.json(), schema)
    slug = response.json()["type"].rpartition("/")[2]
    assert f"`{slug}`" in told["description"]
    assert set(response.json()) <= set(_properties({"$ref": "/Problem"}))


def told(model: type[BaseModel], document: dict[str, Any]) -> dict[str, Any]:
    """What a model keeps of a document."""
    return model.model_validate(document).model_dump(mode="json", exclude_unset=True)


def test_the_client_reads_every_field_that_the_endpoint_tells(plain: Handler, call: Call) -> None:
    details = call("GET", MODEL).json()
    assert told(ModelDetails, details) == details
    answer = call("POST", f"{MODEL}:predict", content=RED).json()
    assert told(Prediction, answer) == answer
