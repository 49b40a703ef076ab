"""The client and the endpoint, with a network between them: each means what the other says."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from serve.client import (
    AsyncClient,
    Client,
    Failed,
    KeyRefusedError,
    OneLabel,
    RequestRefusedError,
    UnknownModelError,
)
from serve.handler import Handler
from serve.keys import Keys
from tests.serve.conftest import running
from tests.serve.material import image_file

RED, BLUE = image_file((250, 10, 10)), image_file((5, 5, 240), form="JPEG")
KEY = "k" * 32


@pytest.fixture(scope="module")
def url(plain: Handler) -> Iterator[str]:
    with running(plain) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url, retries=0) as opened:
        yield opened


def labels(answers: tuple[object, ...]) -> list[str]:
    return [answer.label if isinstance(answer, OneLabel) else "-" for answer in answers]


def test_images_are_answered_however_they_are_given(client: Client, tmp_path: Path) -> None:
    (tmp_path / "blue.jpg").write_bytes(BLUE)
    drawn = Image.open(io.BytesIO(RED))

    answered = client.predict("colours", [RED, tmp_path / "blue.jpg", drawn])

    assert labels(answered.answers) == ["red", "blue", "red"]
    assert (answered.model, answered.version, answered.alias) == ("colours", "3", "champion")
    assert answered.timing_ms.total >= answered.timing_ms.infer > 0
    for one in (RED, tmp_path / "blue.jpg", drawn):
        assert len(client.predict("colours", one).answers) == 1


def test_top_says_how_many_labels_are_told(client: Client) -> None:
    for inputs in (RED, [RED, BLUE]):
        (answer, *_) = client.predict("colours", inputs, top=2).answers
        assert isinstance(answer, OneLabel)
        assert len(answer.probabilities) == 2


def test_one_bad_image_among_good_ones_is_a_value(client: Client) -> None:
    answers = client.predict("colours", [RED, RED[:50], BLUE]).answers

    assert labels(answers) == ["red", "-", "blue"]
    assert isinstance(answers[1], Failed)
    assert answers[1].error.status == 422


def test_only_bad_images_are_a_problem_that_tells_of_each(client: Client) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        client.predict("colours", [RED[:50], b"no image"])

    assert caught.value.problem.items is not None
    assert [item.status for item in caught.value.problem.items if item] == [422, 422]


def test_texts_are_answered(client: Client, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("A note of more than ten characters 🎉")

    assert labels(client.predict("lengths", ["short", "quite a long text"]).answers) == [
        "short",
        "long",
    ]
    assert labels(client.predict("lengths", [tmp_path / "note.txt", "short"]).answers) == [
        "long",
        "short",
    ]


def test_embeddings_and_models_are_told(client: Client) -> None:
    found = client.embed("colours", [RED, RED[:50]])
    assert found.embeddings[0] is not None
    assert len(found.embeddings[0]) == 3
    assert found.embeddings[1] is None
    assert found.errors[1].status == 422
    assert [model.name for model in client.models()] == ["colours", "lengths"]
    details = client.model("colours")
    assert (details.accepts, details.zero_shot) == (("image",), False)
    assert details.limits["items"] > 1


def test_an_unknown_name_is_its_own_kind_of_problem(client: Client) -> None:
    with pytest.raises(UnknownModelError, match=r"only colours, lengths.*'colours'"):
        client.predict("colour", RED)


def test_a_key_opens_the_endpoint(plain: Handler) -> None:
    keys = Keys({"me": hashlib.sha256(KEY.encode()).hexdigest()})
    guarded = Handler(plain.endpoints, limits=plain.limits, keys=keys)
    with running(guarded) as port:
        url = f"http://127.0.0.1:{port}"
        for key in (None, "x" * 32):
            with Client(url, key) as closed, pytest.raises(KeyRefusedError) as caught:
                closed.predict("colours", RED)
            assert KEY not in str(caught.value)
        with Client(url, KEY) as opened:
            assert labels(opened.predict("colours", RED).answers) == ["red"]


def test_many_questions_can_be_asked_at_once(url: str) -> None:
    async def ask() -> list[str]:
        async with AsyncClient(url) as client:
            found = await asyncio.gather(*(client.predict("colours", RED) for _ in range(20)))
        return [label for one in found for label in labels(one.answers)]

    assert asyncio.run(ask()) == ["red"] * 20
