"""The OpenAPI document as a page to read: plain HTML, nothing fetched, nothing run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

Json = dict[str, Any]

EXAMPLES = (
    (
        "One image, as it is",
        "curl -H 'Content-Type: image/jpeg' --data-binary @a.jpg {url}/v1/models/NAME:predict",
    ),
    ("Several at once", "curl -F input=@a.jpg -F input=@b.jpg {url}/v1/models/NAME:predict"),
    (
        "A text",
        "curl -H 'Content-Type: text/plain' -d 'Some text' {url}/v1/models/NAME:predict",
    ),
    (
        "A question",
        'curl --json \'{{"inputs": [{{"question": "Who?", "context": "Ann did."}}]}}\' '
        "{url}/v1/models/NAME:predict",
    ),
    (
        "Zero-shot, with your own classes",
        "curl -F input=@a.jpg -F labels=cat -F labels=dog {url}/v1/models/NAME:predict",
    ),
    (
        "From Python",
        "from pathlib import Path\nfrom serve.client import Client\n\n"
        'with Client("{url}") as client:\n'
        '    print(client.predict("NAME", Path("a.jpg")).answers[0])',
    ),
)
URL = "http://127.0.0.1:8000"
EXAMPLE, DATA = "By example", "Data"  # sections that are no tag of the document


def docs_page(document: Json) -> str:
    """The page of an OpenAPI document.

    Args:
        document: As `openapi.document` makes it.
    """
    info = document["info"]
    tags = [tag["name"] for tag in document["tags"]]
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark"><title>API of the endpoint</title>',
            '<link rel="icon" href="icon.svg" type="image/svg+xml">',
            '<link rel="stylesheet" href="page.css"></head><body class="docs">',
            '<nav aria-label="Endpoint"><a class="home" href=".">Transfer Orchestrator</a>',
            '<a href="openapi.json">OpenAPI</a></nav><main><header>',
            f'<p class="kicker">Version {escape(info["version"])}</p><h1>The API</h1>',
            f'<p class="lead">{_prose(info["description"])}</p>{_contents(tags)}</header>',
            _keys(),
            _examples(),
            *(_tag(tag, document["paths"]) for tag in tags),
            _schemas(document["components"]["schemas"]),
            "</main></body></html>",
        ]
    )


def _contents(tags: Iterable[str]) -> str:
    links = (f'<a href="#{_anchor(one)}">{escape(one)}</a>' for one in (EXAMPLE, *tags, DATA))
    return f'<p class="contents">{" ".join(links)}</p>'


def _anchor(title: str) -> str:
    return escape(title.lower().replace(" ", "-"))


def _section(title: str, content: str) -> str:
    return f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{content}</section>'


def _keys() -> str:
    return (
        "<p>Where the endpoint wants a key, send it as the header "
        "<code>Authorization: Bearer KEY</code> or <code>X-API-Key: KEY</code>.</p>"
    )


def _examples() -> str:
    found = "".join(
        f"<dt>{escape(title)}</dt><dd><pre tabindex=0>{escape(text.format(url=URL))}</pre></dd>"
        for title, text in EXAMPLES
    )
    return _section(EXAMPLE, f'<dl class="examples">{found}</dl>')


def _tag(tag: str, paths: Json) -> str:
    found = [
        _operation(method, path, operation)
        for path, methods in paths.items()
        for method, operation in methods.items()
        if tag in operation["tags"]
    ]
    return _section(tag, "".join(found))


def _operation(method: str, path: str, operation: Json) -> str:
    return (
        f'<article id="{escape(operation["operationId"])}">'
        f"<h3><code><b>{escape(method.upper())}</b> {escape(path)}</code></h3>"
        f"<p>{escape(operation['summary'])}</p>"
        f"<table>{''.join(_rows(operation))}</table></article>"
    )


def _rows(operation: Json) -> Iterator[str]:
    for parameter in operation.get("parameters", ()):
        kind = f"{_type(parameter['schema'])}, in the {escape(parameter['in'])}"
        yield _row(parameter["name"], kind, parameter.get("description", ""))
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        yield _row("body", f"<code>{escape(media)}</code>", _body(body.get("schema", {})), raw=True)
    for status, response in operation["responses"].items():
        models = [_type(one["schema"]) for one in response["content"].values() if "schema" in one]
        yield _row(status, ", ".join(models), response["description"])


def _body(schema: Json) -> str:
    if "properties" in schema:
        fields = (
            f"<code>{escape(name)}</code>"
            + (f" ({escape(field['description'])})" if "description" in field else "")
            for name, field in schema["properties"].items()
        )
        return "parts " + ", ".join(fields)
    return _type(schema) if "$ref" in schema else escape(schema.get("description", ""))


def _row(head: str, kind: str, note: str, *, raw: bool = False) -> str:
    said = note if raw else _prose(note)
    return f"<tr><th scope=row>{escape(head)}</th><td>{kind}</td><td>{said}</td></tr>"


def _schemas(schemas: Json) -> str:
    found = "".join(_schema(name, schema) for name, schema in sorted(schemas.items()))
    return _section(DATA, found)


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", ())
    rows = "".join(
        _row(
            field if field in required else f"{field}?",
            _type(content),
            content.get("description", ""),
        )
        for field, content in schema["properties"].items()
    )
    return (
        f'<article id="schema-{escape(name)}"><h3>{escape(name)}</h3>'
        f"<p>{_prose(schema.get('description', ''))}</p><table>{rows}</table></article>"
    )


def _type(schema: Json) -> str:
    """The type of a value in words, with links to what is described elsewhere."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return _either(schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array":
            return f"list of {_type(schema.get('items', {}))}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"object of {_type(schema['additionalProperties'])}"
        case None:
            return "any value"
        case kind:
            return escape(str(kind))


def _either(values: Iterable[object]) -> str:
    return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)


def _prose(text: str) -> str:
    """Escaped text; what stands between backticks is code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
