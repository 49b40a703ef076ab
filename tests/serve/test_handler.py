"""The HTTP contract, asked without a network."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image

from serve.handler import HELD_BACK_S, Handler
from serve.keys import Keys
from serve.limits import Limits
from serve.problems import KINDS
from tests.serve.conftest import Call, ask
from tests.serve.material import POISON, image_file

PREDICT = "/v1/models/colours:predict"
RED, BLUE = image_file((250, 10, 10)), image_file((5, 5, 240), form="JPEG")


def in_json(*images: bytes, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"image": base64.b64encode(image).decode()} for image in images], **more}


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem in a response, which must be a whole and typed one."""
    found: dict[str, Any] = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, found["type"]) == (status, f"/problems/{slug}"), found
    assert found["status"] == status
    assert found["title"] == KINDS[slug].title  # type: ignore[index]
    assert found["instance"] == response.headers["x-request-id"]
    assert found["detail"]
    return found


@pytest.mark.parametrize(
    "request_of",
    [
        {"content": RED, "headers": {"Content-Type": "image/png"}},
        {"content": RED},
        {"files": {"input": ("red.png", RED)}},
        {"json": in_json(RED)},
        {
            "json": {
                "inputs": [{"image": "data:image/png;base64," + base64.b64encode(RED).decode()}]
            }
        },
    ],
)
def test_one_image_has_one_answer_however_it_is_sent(
    call: Call, plain: Handler, request_of: dict[str, Any]
) -> None:
    response = call("POST", PREDICT, **request_of)
    assert response.status_code == 200, response.text
    found = response.json()
    assert set(found) == {"model", "version", "alias", "digest", "answers", "timing_ms"}
    assert (found["model"], found["version"], found["alias"]) == ("colours", "3", "champion")
    assert found["digest"] == plain.endpoints["colours"].entry.identity.digest
    assert set(found["timing_ms"]) == {"read", "queue", "infer", "total"}
    (answer,) = found["answers"]
    assert answer["label"] == "red"
    assert list(answer["probabilities"]) == ["red", "green", "blue"]
    assert response.headers["x-model-version"] == "3"
    assert "infer;dur=" in response.headers["server-timing"]


@pytest.mark.parametrize("where", ["query", "json", "form"])
def test_top_says_how_many_labels_are_told(call: Call, where: str) -> None:
    options: dict[str, Any] = {
        "query": {"content": RED, "params": {"top": 1}},
        "json": {"json": in_json(RED, top=1)},
        "form": {"files": {"input": RED}, "data": {"top": "1"}},
    }[where]
    (answer,) = call("POST", PREDICT, **options).json()["answers"]
    assert list(answer["probabilities"]) == ["red"]


def test_several_inputs_are_answered_in_order_and_a_bad_one_fails_alone(call: Call) -> None:
    cut = RED[: len(RED) // 2]
    response = call("POST", PREDICT, json=in_json(RED, b"no image", BLUE, cut))
    assert response.status_code == 200
    red, no_image, blue, half = response.json()["answers"]
    assert (red["label"], blue["label"]) == ("red", "blue")
    assert no_image["error"]["type"] == half["error"]["type"] == "/problems/undecodable"
    assert "not an image" in no_image["error"]["detail"]


def test_an_input_that_breaks_the_model_fails_alone_and_tells_no_secret(call: Call) -> None:
    response = call("POST", PREDICT, json=in_json(RED, image_file(POISON), BLUE))
    red, broken, blue = response.json()["answers"]
    assert (red["label"], blue["label"]) == ("red", "blue")
    assert broken["error"]["status"] == 500
    assert "secret" not in response.text


def test_items_of_a_wrong_kind_fail_alone(call: Call) -> None:
    inputs = [*in_json(RED)["inputs"], {"text": "a"}, {"image": 3}, {"image": "%%%"}, 7, {}]
    answers = call("POST", PREDICT, json={"inputs": inputs}).json()["answers"]
    assert [a.get("error", {}).get("type", "")[10:] for a in answers] == [
        "", "unsuitable", "unsuitable", "undecodable", "unsuitable", "unsuitable",
    ]  # fmt: skip


def test_when_nothing_can_be_answered_the_request_is_refused(call: Call) -> None:
    problem(call("POST", PREDICT, content=b"no image"), 422, "undecodable")
    found = problem(call("POST", PREDICT, json=in_json(b"a", b"b")), 422, "unsuitable")
    assert [item["type"] for item in found["items"]] == ["/problems/undecodable"] * 2


def test_a_text_model_takes_texts_in_every_way(call: Call) -> None:
    path = "/v1/models/lengths:predict"
    long = "nine is nine and ten is ten"
    for options in (
        {"content": long.encode(), "headers": {"Content-Type": "text/plain"}},
        {"content": long.encode("utf-16"), "headers": {"Content-Type": "text/plain"}},
        {"content": long.encode(), "headers": {"Content-Type": "text/plain; charset=utf-8"}},
        {"content": long.encode()},
        {"data": {"input": [long]}, "files": {}},
        {"files": {"input": ("a.txt", long.encode())}},
        {"json": {"inputs": [{"text": long}]}},
    ):
        if "data" in options:
            options = {"files": [("input", (None, long))]}
        (answer,) = call("POST", path, **options).json()["answers"]
        assert answer["label"] == "long"


@pytest.mark.parametrize(
    ("options", "status", "slug"),
    [
        ({"content": b"{"}, 400, "malformed"),
        ({"content": b"[" * 100_000}, 400, "malformed"),
        ({"content": b"[" * 900 + b"]" * 900}, 400, "malformed"),
        ({"content": b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}"}, 422, "unsuitable"),
        ({"json": []}, 400, "malformed"),
        ({"json": {"input": []}}, 400, "malformed"),
        ({"json": {"inputs": []}}, 400, "malformed"),
        ({"json": {"inputs": "a"}}, 400, "malformed"),
        ({"content": b'{"inputs": [NaN]}'}, 400, "malformed"),
        ({"content": b'{"inputs": [1], "top": ' + b"9" * 5000 + b"}"}, 400, "malformed"),
        ({"json": in_json(RED, top=0)}, 400, "malformed"),
        ({"json": in_json(RED, top=True)}, 400, "malformed"),
        ({"json": in_json(RED, labels=["a"])}, 422, "unsuitable"),
        ({"json": in_json(RED, labels=["a", "a"])}, 422, "unsuitable"),
        ({"json": in_json(RED, labels=["a", 1])}, 400, "malformed"),
        ({"json": in_json(RED, labels=[" "])}, 422, "unsuitable"),
        ({"json": in_json(RED, labels=["a" * 3000])}, 422, "too-large"),
        ({"json": in_json(RED, labels=[str(i) for i in range(10_000)])}, 422, "too-many"),
        ({"json": in_json(RED, templates=["a photo"])}, 422, "unsuitable"),
        ({"json": in_json(*[RED] * 33)}, 422, "too-many"),
    ],
)
def test_json_that_is_not_as_it_should_be(
    call: Call, options: dict[str, Any], status: int, slug: str
) -> None:
    headers = {"Content-Type": "application/json"}
    problem(call("POST", PREDICT, headers=headers, **options), status, slug)


FORM = (
    b'--B\r\nContent-Disposition: form-data; name="input"; filename="a.png"\r\n\r\n'
    + RED
    + b"\r\n--B--\r\n"
)
LABEL = b'--B\r\nContent-Disposition: form-data; name="labels"\r\n\r\nx\r\n'
LONG_HEADER = b"\r\nA: " + b"a" * 100_000 + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("content", "boundary", "status", "slug"),
    [
        (FORM[:-10], "B", 400, "malformed"),
        (FORM, "C", 400, "malformed"),
        (FORM, "", 400, "malformed"),
        (FORM, "B" * 500, 400, "malformed"),
        (b"", "B", 400, "malformed"),
        (b"--B--\r\n", "B", 400, "malformed"),
        (b"--B\r\nno header\r\n\r\nx\r\n--B--\r\n", "B", 400, "malformed"),
        (b"--B\r\n\r\nx\r\n--B--\r\n", "B", 400, "malformed"),
        (FORM.replace(b'"input"', b'"image"'), "B", 400, "malformed"),
        (FORM.replace(b"\r\n\r\n", LONG_HEADER, 1), "B", 400, "malformed"),
        (FORM.replace(b"--B--", FORM), "B", 200, ""),
        (FORM.replace(b"--B--\r\n", b"") * 40 + b"--B--\r\n", "B", 422, "too-many"),
        (LABEL * 3000 + b"--B--\r\n", "B", 422, "too-many"),
    ],
)  # fmt: skip
def test_forms_that_are_not_as_they_should_be(
    call: Call, content: bytes, boundary: str, status: int, slug: str
) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    response = call("POST", PREDICT, content=content, headers=headers)
    if status == 200:
        assert response.status_code == 200
    else:
        problem(response, status, slug)


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-www-form-urlencoded", "a", "image", "/", "x" * 9000]
)
def test_another_kind_of_body_is_refused_and_told_which_are_taken(call: Call, media: str) -> None:
    headers = {"Content-Type": media}
    found = problem(call("POST", PREDICT, content=RED, headers=headers), 415, "media-type")
    assert "application/json" in found["detail"]


def test_a_compressed_body_is_refused(call: Call) -> None:
    response = call("POST", PREDICT, content=RED, headers={"Content-Encoding": "gzip"})
    problem(response, 415, "media-type")


@pytest.mark.parametrize("name", ["colour", "Colours", "..%2f..%2fetc", "a" * 4000, "%00", "é"])
def test_an_unknown_name_is_a_404(call: Call, name: str) -> None:
    response = call("POST", f"/v1/models/{name}:predict", content=RED)
    assert response.status_code == 404
    assert response.json()["type"] in ("/problems/unknown-model", "/problems/unknown-path")


def test_an_unknown_name_is_told_what_is_served(call: Call) -> None:
    found = problem(call("GET", "/v1/models/colour"), 404, "unknown-model")
    assert "colours, lengths" in found["detail"]
    assert "Did you mean 'colours'?" in found["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PREDICT, "POST"),
        ("DELETE", "/v1/models/colours", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("BREW", "/v1/models", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_are_taken(
    call: Call, method: str, path: str, allowed: str
) -> None:
    response = call(method, path)
    problem(response, 405, "method")
    assert response.headers["allow"] == allowed


def test_models_are_listed_and_described(call: Call) -> None:
    listed = call("GET", "/v1/models").json()["models"]
    assert [model["name"] for model in listed] == ["colours", "lengths"]
    details = call("GET", "/v1/models/colours").json()
    assert details | listed[0] == details
    assert details["labels"] == ["red", "green", "blue"]
    assert details["metrics"] == {"accuracy": 0.8}
    assert details["accepts"] == ["image"]
    assert details["limits"]["items"] == 32
    assert details["input"]["size"] == 32
    assert details["card"] == "# A card\n"
    assert details["zero_shot"] is False


def test_embeddings_have_a_row_for_each_input(call: Call) -> None:
    found = call("POST", "/v1/models/colours:embed", json=in_json(RED, b"no", BLUE)).json()
    red, none, blue = found["embeddings"]
    assert (none, len(red), len(blue)) == (None, 3, 3)
    assert list(found["errors"]) == ["1"]


def test_the_part_of_an_image_that_its_label_rests_on_is_told(call: Call) -> None:
    picture = Image.new("RGB", (70, 70), (10, 10, 10))
    picture.paste((250, 0, 0), (0, 0, 10, 10))
    file = io.BytesIO()
    picture.save(file, "PNG")
    found = call("POST", "/v1/models/colours:explain", content=file.getvalue()).json()
    assert found["label"] == "red"
    rows, cols, values = (found["map"][key] for key in ("rows", "cols", "values"))
    assert (len(values), len(values[0])) == (rows, cols)
    assert values[0][0] == max(max(row) for row in values)
    options = {"files": {"input": file.getvalue()}, "data": {"label": "blue"}}
    assert call("POST", "/v1/models/colours:explain", **options).json()["label"] == "blue"


def test_what_cannot_be_explained_is_refused(call: Call) -> None:
    path = "/v1/models/colours:explain"
    problem(call("POST", path, content=b"no image"), 422, "undecodable")
    problem(call("POST", path, json=in_json(RED, BLUE)), 422, "too-many")
    problem(call("POST", path, json=in_json(RED, label="violet")), 422, "unsuitable")


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        ("predict", {"label": "red"}, "label"),
        ("explain", {"top": 2}, "top"),
        ("embed", {"labels": ["red", "blue"]}, "labels"),
        ("embed", {"templates": ["a {}."]}, "templates"),
    ],
)
def test_what_a_verb_has_no_use_for_is_refused(
    call: Call, verb: str, options: dict[str, Any], said: str
) -> None:
    response = call("POST", f"/v1/models/colours:{verb}", json=in_json(RED, **options))
    problem(response, 400, "malformed")
    assert response.json()["detail"].startswith(f"{said}: ")


def test_health_is_told_without_a_probe_and_readiness_after_one(call: Call) -> None:
    assert call("GET", "/healthz").json() == {"alive": True}
    assert call("GET", "/readyz").json()["models"] == {"colours": True, "lengths": True}


def test_a_request_keeps_a_harmless_id_of_its_own(call: Call) -> None:
    assert call("GET", "/healthz", headers={"X-Request-ID": "a-1"}).headers["x-request-id"] == "a-1"
    for hostile in ("a b", "x" * 65, 'a"b'):
        given = call("GET", "/healthz", headers={"X-Request-ID": hostile}).headers["x-request-id"]
        assert given != hostile
        assert len(given) == 32


def test_a_model_that_fails_its_probe_is_not_ready(make: Callable[..., Handler]) -> None:
    handler = make()

    def broken(views: Any) -> Any:
        raise RuntimeError("out of memory")

    handler.endpoints["colours"].predictor.probabilities = broken  # type: ignore[attr-defined]
    found = problem(asyncio.run(ask(handler, "GET", "/readyz")), 503, "not-ready")
    assert found["detail"].startswith("colours does not")
    one = asyncio.run(ask(handler, "GET", "/v2/models/colours/ready"))
    problem(one, 503, "not-ready")
    assert asyncio.run(ask(handler, "GET", "/v2/models/lengths/ready")).status_code == 200
    assert asyncio.run(ask(handler, "GET", "/healthz")).status_code == 200


@pytest.mark.parametrize("query", ["&" * 64, "a=1&" * 70 + "top=1", "&" * 5000])
def test_a_query_of_too_many_parameters_is_refused(call: Call, query: str) -> None:
    found = problem(call("POST", f"{PREDICT}?{query}", content=RED), 400, "malformed")
    assert "more than 64 parameters" in found["detail"]


def test_a_label_of_megabytes_is_refused_and_not_repeated(call: Call) -> None:
    path, label = "/v1/models/colours:explain", "a" * (10 << 20)
    for options in (
        {"json": in_json(RED, label=label)},
        {"files": {"input": RED}, "data": {"label": label}},
    ):
        response = call("POST", path, **options)
        problem(response, 422, "too-large")
        assert len(response.content) < 1000


# Keys.

KEY = "a-key-of-thirty-characters-000"


@pytest.fixture
def locked(make: Callable[..., Handler]) -> Handler:
    return make(keys=Keys({"ann": hashlib.sha256(KEY.encode()).hexdigest()}))


def test_everything_but_health_needs_a_key(call: Call, locked: Handler) -> None:
    for path in ("/v1/models", "/v1/models/colours", "/metrics", "/v2", "/nothing", "/v2/models/x"):
        found = call("GET", path, to=locked)
        problem(found, 401, "key-missing")
        assert found.headers["www-authenticate"] == "Bearer"
    assert call("GET", "/healthz", to=locked).status_code == 200
    assert call("GET", "/readyz", to=locked).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {KEY}"}, {"X-API-Key": KEY}],
)
def test_a_right_key_is_let_in(call: Call, locked: Handler, headers: dict[str, str]) -> None:
    assert call("POST", PREDICT, to=locked, content=RED, headers=headers).status_code == 200


@pytest.mark.parametrize("key", [KEY[:-1], KEY + "0", KEY.upper(), "é", "ann", "x" * 5000])
def test_a_wrong_key_is_not(call: Call, locked: Handler, key: str) -> None:
    headers = {"X-API-Key": key.encode("latin-1")}
    problem(call("GET", "/v1/models", to=locked, headers=headers), 403, "key-wrong")
    problem(call("GET", f"/v1/models?key={KEY}", to=locked), 401, "key-missing")


def test_the_log_names_the_key_and_never_shows_it(
    call: Call, locked: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "transfer_orchestrator")
    call("POST", PREDICT, to=locked, content=RED, headers={"X-API-Key": KEY})
    call("GET", f"/v1/models?key={KEY}", to=locked, headers={"X-API-Key": KEY + "x"})
    lines = [json.loads(r.getMessage()) for r in caplog.records if "access" in r.name]
    assert [line["key"] for line in lines] == ["ann", None]
    assert lines[0] | {"at": 0, "ms": 0, "request": 0} == {
        "at": 0, "request": 0, "key": "ann", "method": "POST", "path": PREDICT, "model": "colours",
        "version": "3", "status": 200, "items": 1, "refused": 0, "bytes": len(RED), "ms": 0,
    }  # fmt: skip
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("transfer_orchestrator")]
    assert KEY not in "".join(ours)


# Limits.


def test_an_image_is_refused_by_its_header_before_it_is_decoded(call: Call) -> None:
    bomb, larger = image_file(size=(9000, 9000)), image_file(size=(14_000, 14_000))
    started_s = time.perf_counter()
    found = problem(call("POST", PREDICT, content=bomb), 422, "too-large")
    assert time.perf_counter() - started_s < 0.5  # decoding takes seconds
    assert "9000 × 9000 is 81,000,000 pixels" in found["detail"]
    problem(call("POST", PREDICT, content=larger), 422, "too-large")  # Pillow's own limit


def test_an_animation_is_refused_unless_it_is_allowed(
    call: Call, make: Callable[..., Handler]
) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    problem(call("POST", PREDICT, content=file.getvalue()), 422, "unsuitable")
    lenient = make(limits=Limits(animations=True))
    found = call("POST", PREDICT, to=lenient, content=file.getvalue()).json()
    assert found["answers"][0]["label"] == "red"


def test_a_body_that_says_it_is_too_long_is_refused_unread(
    call: Call, make: Callable[..., Handler]
) -> None:
    small = make(limits=Limits(body_bytes=1000))
    read = 0

    async def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield b"x" * 100

    problem(call("POST", PREDICT, to=small, content=b"x" * 1001), 413, "too-long")
    problem(call("POST", PREDICT, to=small, content=endless()), 413, "too-long")
    assert read <= 10 + 1 + 10 + 1  # the limit, and as much again while lingering
    for wrong in ("-1", "1e3", "٣", " ", "9" * 40):
        headers = {"Content-Length": wrong.encode("utf-8")}
        response = call("POST", PREDICT, to=small, content=b"x", headers=headers)
        assert response.status_code in (400, 413)


def test_all_bodies_together_have_a_limit(call: Call, make: Callable[..., Handler]) -> None:
    handler = make(limits=Limits(bytes_at_once=len(RED) + 10), seconds=0.3)

    async def two() -> list[httpx.Response]:
        asked = (ask(handler, "POST", PREDICT, content=RED) for _ in range(2))
        return await asyncio.gather(*asked)

    found = asyncio.run(two())
    assert sorted(r.status_code for r in found) == [200, 503]
    assert handler.room.taken_bytes == 0


def test_a_full_queue_is_told_when_to_come_again(make: Callable[..., Handler]) -> None:
    handler = make(limits=Limits(queue=2), seconds=0.2)

    async def many() -> list[httpx.Response]:
        return await asyncio.gather(
            *(ask(handler, "POST", PREDICT, content=RED) for _ in range(10))
        )

    found = asyncio.run(many())
    assert sorted(r.status_code for r in found) == [200] * 3 + [503] * 7
    refused = next(r for r in found if r.status_code == 503)
    problem(refused, 503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    held_s = [r.elapsed.total_seconds() for r in found if r.status_code == 503]
    assert min(held_s) >= 0.9 * HELD_BACK_S
    assert asyncio.run(ask(handler, "POST", PREDICT, content=RED)).status_code == 200


def test_the_deadline_holds_whatever_the_client_says(
    call: Call, make: Callable[..., Handler]
) -> None:
    handler = make(limits=Limits(answer_s=0.2), seconds=0.6)
    headers = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1"}
    started_s = time.perf_counter()
    response = call("POST", PREDICT, to=handler, content=RED, headers=headers)
    problem(response, 504, "deadline")
    assert time.perf_counter() - started_s < 0.6


def test_the_event_loop_answers_while_a_model_computes(make: Callable[..., Handler]) -> None:
    handler = make(seconds=0.5)

    async def both() -> float:
        slow = asyncio.create_task(ask(handler, "POST", PREDICT, content=RED))
        await asyncio.sleep(0.1)
        started_s = time.perf_counter()
        await ask(handler, "GET", "/healthz")
        took_s = time.perf_counter() - started_s
        await slow
        return took_s

    assert asyncio.run(both()) < 0.2


# Metrics.


def test_requests_are_counted_by_model_version_and_outcome(make: Callable[..., Handler]) -> None:
    handler = make()

    async def several() -> str:
        await ask(handler, "POST", PREDICT, content=RED)
        await ask(handler, "POST", PREDICT, json=in_json(RED, b"no"))
        await ask(handler, "POST", PREDICT, content=b"no")
        await ask(handler, "GET", "/v1/models/unknown")
        for path in ("/v1/models/colours", "/v2/models/colours", "/v2/models/colours/ready"):
            await ask(handler, "GET", path)  # questions about the model, and none to it
        return (await ask(handler, "GET", "/metrics")).text

    text = asyncio.run(several())
    line = 'orchestrator_requests_total{{model="colours",outcome="{}",version="3"}} 1'
    for outcome in ("ok", "partial", "refused"):
        assert line.format(outcome) in text
    assert 'orchestrator_items_total{model="colours",outcome="ok",version="3"} 2' in text
    assert 'orchestrator_request_seconds_count{model="colours",version="3"} 3' in text
    assert 'orchestrator_requests_in_flight{model="colours"} 0' in text
    assert "unknown" not in text


def test_a_request_that_its_client_gives_up_is_counted(make: Callable[..., Handler]) -> None:
    handler = make(seconds=0.3)

    async def give_up() -> str:
        asked = asyncio.create_task(ask(handler, "POST", PREDICT, content=RED))
        await asyncio.sleep(0.1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        return (await ask(handler, "GET", "/metrics")).text

    text = asyncio.run(give_up())
    assert 'orchestrator_requests_total{model="colours",outcome="gone",version="3"} 1' in text


def test_who_asks_for_readiness_while_it_is_found_out_waits_for_the_same(
    make: Callable[..., Handler],
) -> None:
    handler = make()
    probed: list[str] = []

    class Probed:
        def __init__(self, entry: Any) -> None:
            self.entry = entry

        async def probe(self) -> None:
            probed.append(self.entry.name)
            await asyncio.sleep(0.1)

    handler.endpoints = {name: Probed(one.entry) for name, one in handler.endpoints.items()}  # type: ignore[misc]

    async def twice() -> list[httpx.Response]:
        first = await asyncio.gather(*(ask(handler, "GET", "/readyz") for _ in range(5)))
        return [*first, await ask(handler, "GET", "/readyz")]

    assert {response.status_code for response in asyncio.run(twice())} == {200}
    assert probed == ["colours", "lengths"] * 2


def test_the_bytes_of_a_text_are_as_long_as_their_characters(
    call: Call, make: Callable[..., Handler]
) -> None:
    handler = make(limits=Limits(text_chars=10))
    path = "/v1/models/lengths:predict"
    for text in ("a" * 11, "\u00e4" * 11):
        problem(call("POST", path, to=handler, content=text.encode()), 422, "too-large")
    assert call("POST", path, to=handler, content=("\u00e4" * 10).encode()).status_code == 200
