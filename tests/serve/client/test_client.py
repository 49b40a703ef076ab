"""What the client sends, and what it makes of what comes back; the same for both kinds of it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.errors import DataError, OrchestratorError, SpecError
from serve.client import (
    AsyncClient,
    Client,
    DeadlineError,
    Failed,
    ForeignAnswerError,
    KeyRefusedError,
    OneLabel,
    OverloadedError,
    ProblemError,
    Question,
    RequestRefusedError,
    ServerFailedError,
    UnknownModelError,
    UnreachableError,
)
from tests.serve.client.scripted import Received, Reply, scripted

ROOT = Path(__file__).parents[3]
TIMING = {"read": 1.0, "queue": 0.1, "infer": 7.5, "total": 8.6}
FROM = {"model": "cells", "version": "3", "digest": "d" * 64, "timing_ms": TIMING}
ONE = {"label": "red", "probabilities": {"red": 0.9, "blue": 0.1}}
POISONED = {"type": "/problems/undecodable", "title": "Undecodable", "status": 422, "detail": "cut"}
PREDICTION = {**FROM, "alias": "champion", "answers": [ONE, {"error": POISONED}]}

Ask = Callable[..., Any]


def _blocking(url: str, method: str, *args: Any, settings: dict[str, Any], **named: Any) -> Any:
    with Client(url, **settings) as client:
        return getattr(client, method)(*args, **named)


def _awaited(url: str, method: str, *args: Any, settings: dict[str, Any], **named: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(url, **settings) as client:
            return await getattr(client, method)(*args, **named)

    return asyncio.run(ask())


@pytest.fixture(params=[_blocking, _awaited], ids=["blocking", "awaited"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """A call of one of the two clients, made and closed."""

    def call(url: str, method: str, *args: Any, **named: Any) -> Any:
        settings = {key: named.pop(key) for key in ("key", "retries") if key in named}
        return request.param(url, method, *args, settings=settings, **named)

    return call


def ok(document: dict[str, Any]) -> Reply:
    return Reply(200, json.dumps(document).encode(), {"Content-Type": "application/json"})


def problem(status: int, **headers: str) -> Reply:
    body = {
        "type": "/problems/x",
        "title": "No",
        "status": status,
        "detail": "why",
        "instance": "r",
    }
    return Reply(status, json.dumps(body).encode(), headers)


def sent(ask: Ask, *args: Any, **named: Any) -> Received:
    """What `predict` sends."""
    with scripted([ok(PREDICTION)]) as endpoint:
        ask(endpoint.url, "predict", "cells", *args, **named)
    return endpoint.received[0]


def form(received: Received) -> list[tuple[str, str | None, bytes]]:
    """Name, file name and content of each part."""
    head = f"Content-Type: {received.headers['Content-Type']}\r\n\r\n".encode()
    whole: Message = BytesParser(policy=HTTP).parsebytes(head + received.body)
    return [
        (
            str(part.get_param("name", header="content-disposition")),
            part.get_filename(),
            part.get_payload(decode=True),  # type: ignore[misc]
        )
        for part in whole.get_payload()  # type: ignore[union-attr]
    ]


def test_answers_are_typed_and_one_bad_input_is_a_value(ask: Ask) -> None:
    with scripted([ok(PREDICTION)]) as endpoint:
        answer = ask(endpoint.url, "predict", "cells", [b"a", b"b"])

    assert (answer.version, answer.alias, answer.timing_ms.infer) == ("3", "champion", 7.5)
    assert answer.answers[0] == OneLabel(**ONE)
    assert isinstance(answer.answers[1], Failed)
    assert answer.answers[1].error.detail == "cut"


def test_keys_of_a_newer_endpoint_do_no_harm(ask: Ask) -> None:
    with scripted([ok({**PREDICTION, "cost": 3})]) as endpoint:
        assert ask(endpoint.url, "predict", "cells", b"a").model == "cells"


def test_one_file_is_the_body_itself(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 pixels")

    received = sent(ask, tmp_path / "a.jpg", top=2)

    assert received.path == "/v1/models/cells:predict?top=2"
    assert received.headers["Content-Type"] == "application/octet-stream"
    assert received.body == b"\xff\xd8 pixels"


def test_several_files_and_fields_are_parts_in_order(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"B")

    received = sent(ask, [b"A", tmp_path / "b.png", "a text"], labels=["cat", "dog"])

    assert form(received) == [
        ("input", "input", b"A"),
        ("input", "b.png", b"B"),
        ("input", None, b"a text"),
        ("labels", None, b"cat"),
        ("labels", None, b"dog"),
    ]


def test_a_pil_image_arrives_with_the_same_pixels(ask: Ask) -> None:
    image = Image.effect_noise((9, 7), 80).convert("RGB")

    received = sent(ask, image)

    assert received.headers["Content-Type"] == "image/png"
    assert Image.open(io.BytesIO(received.body)).tobytes() == image.tobytes()


def test_texts_and_questions_are_json(ask: Ask) -> None:
    received = sent(ask, ["one", Question("who?", "Ann did."), b"\x00"], templates=["a {}"])

    assert json.loads(received.body) == {
        "inputs": [
            {"text": "one"},
            {"question": "who?", "context": "Ann did."},
            {"image": base64.b64encode(b"\x00").decode()},
        ],
        "templates": ["a {}"],
    }


def test_a_text_is_a_text_even_when_a_file_has_its_name(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "note").write_text("inside")
    monkeypatch.chdir(tmp_path)

    assert json.loads(sent(ask, "note").body) == {"inputs": [{"text": "note"}]}


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([], SpecError, "inputs: none given"),
        ([3.5], SpecError, "inputs: 3.5 is float"),
        (Path("/nowhere/x.png"), DataError, r"/nowhere/x\.png: No such file"),
    ],
)
def test_what_is_no_input_is_told_before_anything_is_sent(
    ask: Ask, inputs: object, error: type[Exception], message: str
) -> None:
    with scripted([ok(PREDICTION)]) as endpoint, pytest.raises(error, match=message):
        ask(endpoint.url, "predict", "cells", inputs)

    assert endpoint.received == []


def test_labels_in_one_string_are_a_mistake(ask: Ask) -> None:
    with pytest.raises(SpecError, match=r"labels: 'cat' is one text. Give a list"):
        ask("http://127.0.0.1:9", "predict", "cells", b"a", labels="cat")


def test_a_key_is_sent_and_the_name_cannot_leave_its_place(ask: Ask) -> None:
    with scripted([ok(PREDICTION)]) as endpoint:
        ask(endpoint.url, "predict", "../admin?x", b"a", key="secret")

    assert endpoint.received[0].path == "/v1/models/..%2Fadmin%3Fx:predict"
    assert endpoint.received[0].headers["Authorization"] == "Bearer secret"


def test_embeddings_have_a_vector_or_a_reason(ask: Ask) -> None:
    body = {**FROM, "embeddings": [[0.5, 1.0], None], "errors": {"1": POISONED}}
    with scripted([ok(body)]) as endpoint:
        found = ask(endpoint.url, "embed", "cells", ["a", "b"])

    assert found.embeddings == ((0.5, 1.0), None)
    assert found.errors[1].status == 422


def test_explanations_are_maps_or_spans(ask: Ask) -> None:
    a_map = {"rows": 1, "cols": 2, "values": [[0.25, -0.5]]}
    with scripted([ok({**FROM, "label": "red", "map": a_map})]) as endpoint:
        of_image = ask(endpoint.url, "explain", "cells", b"a", label="red")
    assert form(endpoint.received[0]) == [("input", "input", b"a"), ("label", None, b"red")]
    assert of_image.map.values == ((0.25, -0.5),)
    spans = [{"start": 0, "end": 4, "score": 0.5}]
    with scripted([ok({**FROM, "label": "red", "spans": spans})]) as endpoint:
        of_text = ask(endpoint.url, "explain", "news", "Good day")
    assert (of_text.map, of_text.spans[0].end) == (None, 4)


def test_models_are_listed_and_described(ask: Ask) -> None:
    entry = {k: FROM[k] for k in ("version", "digest")} | {
        "name": "cells", "task": "image-classification", "labels": ["red"], "metrics": {}
    }  # fmt: skip
    details = {**entry, "card": "# Cells", "accepts": ["image"], "limits": {"items": 64}}
    with scripted([ok({"models": [entry]}), ok(details)]) as endpoint:
        assert [model.name for model in ask(endpoint.url, "models")] == ["cells"]
        assert ask(endpoint.url, "model", "cells").limits == {"items": 64}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestRefusedError),
        (401, KeyRefusedError),
        (403, KeyRefusedError),
        (404, UnknownModelError),
        (413, RequestRefusedError),
        (422, RequestRefusedError),
        (429, OverloadedError),
        (500, ServerFailedError),
        (503, OverloadedError),
        (504, ServerFailedError),
    ],
)
def test_a_problem_is_an_exception_of_its_kind(
    ask: Ask, status: int, error: type[ProblemError]
) -> None:
    with (
        scripted([problem(status)]) as endpoint,
        pytest.raises(error, match=rf"^{status} No: why \(request r\)$") as caught,
    ):
        ask(endpoint.url, "predict", "cells", b"a", retries=0)

    assert caught.value.problem.status == status
    assert isinstance(caught.value, OrchestratorError)


def test_what_a_proxy_says_is_a_problem_too(ask: Ask) -> None:
    page = Reply(502, b"<html>Bad gateway</html>", {"Content-Type": "text/html"})
    with scripted([page]) as endpoint, pytest.raises(ServerFailedError, match="502 Bad Gateway"):
        ask(endpoint.url, "predict", "cells", b"a", retries=0)


@pytest.mark.parametrize("reply", [Reply(200, b"<html>"), Reply(200, b"{}"), Reply(302)])
def test_an_answer_of_something_else_is_told(ask: Ask, reply: Reply) -> None:
    with (
        scripted([reply]) as endpoint,
        pytest.raises(ForeignAnswerError, match="Check the address"),
    ):
        ask(endpoint.url, "predict", "cells", b"a")


def test_an_empty_response_and_an_overload_are_tried_again_with_the_same_body(ask: Ask) -> None:
    replies = [Reply(None), problem(503, **{"Retry-After": "0"}), ok(PREDICTION)]
    with scripted(replies) as endpoint:
        answer = ask(endpoint.url, "predict", "cells", [b"A", b"B"])

    assert answer.version == "3"
    assert len(endpoint.received) == 3
    assert form(endpoint.received[0]) == form(endpoint.received[2])


def test_nobody_there_is_told_after_the_last_attempt(ask: Ask) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="no answer in 2 attempts"):
            ask(url, "predict", "cells", b"a", retries=1)


def test_who_never_answers_is_left_when_the_time_is_over(ask: Ask) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started_s = time.monotonic()
        with pytest.raises(DeadlineError, match=r"no answer within 0\.3 s"):
            ask(f"http://127.0.0.1:{silent.getsockname()[1]}", "models", timeout_s=0.3)

    assert time.monotonic() - started_s < 3


def test_an_answer_that_dribbles_is_left_when_the_time_is_over(ask: Ask) -> None:
    started_s = time.monotonic()
    reply = Reply(200, b" " * 40, pause_s=0.1)
    with scripted([reply]) as endpoint, pytest.raises(DeadlineError, match=r"within 0\.4 s"):
        ask(endpoint.url, "models", timeout_s=0.4)
    assert time.monotonic() - started_s < 3


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        ("localhost:8000", {}, "url: 'localhost:8000' is not an http address"),
        ("http://x", {"timeout_s": 0}, "timeout_s: 0 is not above 0"),
        ("http://x", {"retries": -1}, "retries: -1 is below 0"),
        ("http://x", {"key": "a\nb"}, "key: has characters"),
    ],
)
def test_settings_are_checked_at_once(url: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Client(url, **settings)


def run_python(*lines: str) -> Sequence[str]:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_importing_the_client_imports_neither_torch_nor_ray() -> None:
    assert run_python(
        "import sys",
        "from serve.client import Client",
        "heavy = {'torch', 'ray', 'numpy', 'PIL', 'onnxruntime'}",
        "print(sorted(heavy & set(sys.modules)))",
    ) == ["[]"]


def test_importing_the_client_leaves_rays_serve_alone() -> None:
    assert run_python(
        "from serve.client import Client",
        "import ray.serve",
        "from ray import serve",
        "print(serve.run.__module__, Client.__module__, ray.serve is serve)",
    ) == ["ray.serve.api", "serve.client.client", "True"]
