"""The OpenAPI 3.1 document of the endpoint, made of the models and problems that it is built of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from orchestrator.bundle.reference import NAME_RULE
from orchestrator.spec.release import release

from . import contract
from .problems import KINDS, Slug

Json = dict[str, Any]

DESCRIPTION = """\
One POST asks a model about one or several inputs; every answer names the version and digest of the
bundle that gave it, and where its time went. Of several inputs, one that cannot be answered fails
alone. Whatever is refused is refused with a problem (RFC 9457) that says what is wrong with which
value, what is allowed and what to do.
"""

ANY: tuple[Slug, ...] = ("key-missing", "key-wrong", "method", "internal", "deadline")
BODY: tuple[Slug, ...] = (
    "malformed",
    "slow-body",
    "too-long",
    "media-type",
    "undecodable",
    "too-large",
    "too-many",
    "unsuitable",
    "overloaded",
)

BYTES: Json = {"description": "the bytes of one file, as they are"}
FORM: Json = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {
            "type": "array",
            "items": {},
            "description": "one part an input: a file, or a text without a file name",
        },
        "top": {"type": "integer", "minimum": 1},
        "label": {"type": "string", "description": "explain: the label"},
        "labels": {"type": "array", "items": {"type": "string"}, "description": "zero-shot models"},
        "templates": {
            "type": "array",
            "items": {"type": "string"},
            "description": "zero-shot models",
        },
    },
}
TOP: Json = {
    "name": "top",
    "in": "query",
    "description": "how many of the likeliest labels are told",
    "schema": {"type": "integer", "minimum": 1, "default": 5},
}
NAME: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "a name that is served",
    "schema": {"type": "string", "pattern": NAME_RULE},
}
VERSION: Json = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "a version of it that is served",
    "schema": {"type": "string", "pattern": "^[0-9A-Za-z]+$"},
}
ANSWERED: Json = {
    "X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"},
    "X-Model-Version": {"$ref": "#/components/headers/X-Model-Version"},
    "Server-Timing": {"$ref": "#/components/headers/Server-Timing"},
}
HEADERS: Json = {
    "X-Request-Id": {
        "description": "the request's name in the access log; a client may bring its own",
        "schema": {"type": "string"},
    },
    "X-Model-Version": {
        "description": "version of the bundle that answered",
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "`timing_ms` as browsers read it",
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "seconds", "schema": {"type": "string"}},
}


@dataclass(frozen=True)
class Operation:
    """One method at one path.

    Attributes:
        method: In lower case.
        path: With `{name}` where a model's name goes.
        tag: Group in the document.
        summary: One line.
        answer: Model of the 200, or its media type.
        body: Model of a JSON body.
        files: Whether the body may also be a file or a form of files.
        slugs: Problems beside those that any request may meet.
        open: Whether it is told without a key.
        parameters: Of path and query.
        versioned: Whether a bundle answers.
    """

    method: str
    path: str
    tag: str
    summary: str
    answer: type[BaseModel] | str
    body: type[BaseModel] | None = None
    files: bool = False
    slugs: tuple[Slug, ...] = ()
    open: bool = False
    parameters: tuple[Json, ...] = field(default=())
    versioned: bool = False


def _ask(verb: str, summary: str, answer: type[BaseModel], body: type[BaseModel]) -> Operation:
    return Operation(
        "post",
        f"/v1/models/{{name}}:{verb}",
        "Asking",
        summary,
        answer,
        body=body,
        files=True,
        slugs=("unknown-model", *(("unoffered",) if verb == "explain" else ()), *BODY),
        parameters=(NAME, *((TOP,) if verb == "predict" else ())),
        versioned=True,
    )


def _of_a_model(path: str, *, of: str = "") -> tuple[Operation, ...]:
    """What the open inference protocol has at a model, or at one of its versions."""
    tag = "Open inference protocol"
    where = (NAME, VERSION) if "{version}" in path else (NAME,)
    return (
        Operation(
            "post",
            f"{path}/infer",
            tag,
            f"The answers of {of}a model as tensors",
            contract.InferResponse,
            body=contract.InferRequest,
            slugs=("unknown-model", *BODY),
            parameters=where,
            versioned=True,
        ),
        Operation(
            "get",
            path,
            tag,
            f"What {of}a model takes and gives",
            contract.InferMetadata,
            slugs=("unknown-model",),
            parameters=where,
        ),
        Operation(
            "get",
            f"{path}/ready",
            tag,
            f"Whether {of}a model has answered a probe",
            contract.ModelReady,
            slugs=("unknown-model", "not-ready"),
            parameters=where,
        ),
    )


def _page(path: str, summary: str, media: str) -> Operation:
    return Operation("get", path, "For people", summary, media, open=True)


OPERATIONS = (
    _ask("predict", "An answer for each input", contract.Prediction, contract.PredictRequest),
    _ask("embed", "A vector for each input", contract.Embeddings, contract.EmbedRequest),
    _ask(
        "explain",
        "What in an input speaks for a label",
        contract.Explanation,
        contract.ExplainRequest,
    ),
    Operation("get", "/v1/models", "Models", "Everything that is served", contract.ModelList),
    Operation(
        "get",
        "/v1/models/{name}",
        "Models",
        "One model: its card, what it takes and how much of it",
        contract.ModelDetails,
        slugs=("unknown-model",),
        parameters=(NAME,),
    ),
    Operation("get", "/healthz", "State", "The process answers", contract.Alive, open=True),
    Operation(
        "get",
        "/readyz",
        "State",
        "Every model has answered a probe",
        contract.Ready,
        slugs=("not-ready",),
        open=True,
    ),
    Operation("get", "/metrics", "State", "Counts and times for Prometheus", "text/plain"),
    *_of_a_model("/v2/models/{name}"),
    *_of_a_model("/v2/models/{name}/versions/{version}", of="one version of "),
    Operation("get", "/v2", "Open inference protocol", "Which server", contract.ServerMetadata),
    Operation(
        "get",
        "/v2/health/live",
        "Open inference protocol",
        "The process answers",
        contract.Live,
        open=True,
    ),
    Operation(
        "get",
        "/v2/health/ready",
        "Open inference protocol",
        "Every model has answered a probe",
        contract.Ready,
        slugs=("not-ready",),
        open=True,
    ),
    _page("/", "The page that asks a model", "text/html"),
    _page("/docs", "This document, to read", "text/html"),
    _page("/openapi.json", "This document", "application/json"),
)


class _Untitled(GenerateJsonSchema):
    """Schemas without a title for each field, which would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def document() -> Json:
    """The document; equal for every endpoint of this version."""
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Transfer Orchestrator",
            "description": DESCRIPTION,
            "version": release(),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "."}],
        "security": [{}, {"bearer": []}, {"key": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(one.tag for one in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "headers": HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _schemas() -> Json:
    models: dict[type[BaseModel], None] = {contract.Problem: None}
    for operation in OPERATIONS:
        for model in (operation.answer, operation.body):
            if isinstance(model, type):
                models[model] = None
    _, found = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    schemas: Json = found["$defs"]
    return schemas


def _described(operation: Operation) -> Json:
    found: Json = {
        "operationId": _identity(operation),
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": {"200": _answer(operation), **_problems(operation)},
    }
    if operation.parameters:
        found["parameters"] = list(operation.parameters)
    if operation.open:
        found["security"] = []
    if operation.body is not None:
        content: Json = {"application/json": {"schema": _ref(operation.body)}}
        if operation.files:
            content |= {"multipart/form-data": {"schema": FORM}}
            content |= {media: {"schema": BYTES} for media in ("image/*", "text/plain")}
            content["application/octet-stream"] = {"schema": BYTES}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _identity(operation: Operation) -> str:
    path = operation.path.replace("{name}", "one").replace("{version}", "one")
    path = path.replace(".", "-").replace(":", "/")
    return "-".join([operation.method, *path.strip("/").split("/")]).removesuffix("-")


def _answer(operation: Operation) -> Json:
    if isinstance(operation.answer, str):
        content: Json = {operation.answer: {}}
        description = operation.summary
    else:
        content = {"application/json": {"schema": _ref(operation.answer)}}
        description = str(operation.answer.__doc__).splitlines()[0]
    headers = ANSWERED if operation.versioned else {"X-Request-Id": ANSWERED["X-Request-Id"]}
    return {"description": description, "headers": headers, "content": content}


def _problems(operation: Operation) -> Json:
    """The problems that an operation may meet, by status."""
    keyed = ("key-missing", "key-wrong")
    slugs = [slug for slug in ANY if not (operation.open and slug in keyed)]
    by_status: dict[int, list[Slug]] = {}
    for slug in (*slugs, *operation.slugs):
        by_status.setdefault(KINDS[slug].status, []).append(slug)
    return {str(status): _problem(status, found) for status, found in sorted(by_status.items())}


def _problem(status: int, slugs: Iterable[Slug]) -> Json:
    found: Json = {
        "description": "; ".join(f"{KINDS[slug].title} (`{slug}`)" for slug in slugs),
        "content": {contract.PROBLEM_MEDIA_TYPE: {"schema": _ref(contract.Problem)}},
    }
    if status in (429, 503):
        found["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return found


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
