"""Entities and answers on the page; what they are found by is simple here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.preparing import Input
from serve.endpoint import LocalEndpoint
from serve.entry import Entry, Identity
from serve.handler import Handler
from serve.keys import Keys
from serve.limits import Limits
from serve.pages import PAGES
from serve.worker import Worker
from tests.chromium import CHROMIUM, Browser
from tests.serve.conftest import running
from tests.serve.material import plain_bundle
from tests.serve.page.test_page import fits, opened

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

STORY = "🎉 Ada Lovelace met Babbage in London. Nobody else was there."
CONTEXT = "The tower 🗼 was built in 1889, and painted in 1968."
SCREENS = [(1280, False), (390, True)]


class Capitals:
    """Every run of capitalised words is a name."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest

    def predict(
        self, inputs: Sequence[Input], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[dict[str, Any]]:
        for i, text in enumerate(inputs):
            names = re.finditer(r"[A-Z]\w+(?: [A-Z]\w+)*", str(text))
            entities = [
                {
                    "label": ("PER", "ORG", "LOC")[n % 3],
                    "start": name.start(),
                    "end": name.end(),
                    "text": name[0],
                    "score": 0.9,
                }
                for n, name in enumerate(names)
            ]
            yield {"uri": f"input:{i}", "entities": entities}


class Years:
    """Every question is answered with the years in its context."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest

    def predict(
        self, inputs: Sequence[Any], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[dict[str, Any]]:
        for i, asked in enumerate(inputs):
            first, *others = [
                {"answer": year[0], "start": year.start(), "end": year.end(), "score": 0.75 / n}
                for n, year in enumerate(re.finditer(r"\d{4}", asked.context), 1)
            ] or [{"answer": "", "start": None, "end": None, "score": 0.6}]
            yield {"uri": f"input:{i}", **first, "alternatives": others}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("kinds")
    names = plain_bundle(
        folder / "names", kind="token-classification", labels=("PER", "ORG", "LOC")
    )
    years = plain_bundle(folder / "years", kind="question-answering", labels=("answer", "none"))
    endpoints = {
        name: LocalEndpoint(
            Entry(Identity(name, "1", None, bundle.digest), bundle, Limits()),
            predictor,  # type: ignore[arg-type]
            Worker(threads=1, queue=8),
        )
        for name, bundle, predictor in (
            ("names", names, Capitals(names)),
            ("years", years, Years(years)),
        )
    }
    handler = Handler(endpoints, limits=Limits(), keys=Keys({}), routes=PAGES)
    with running(handler) as port:
        yield f"http://127.0.0.1:{port}/"


def write(browser: Browser, field: str, text: str) -> None:
    browser.run(f"document.getElementById('{field}').focus()")
    browser.type(text)


def asked(browser: Browser) -> None:
    browser.run("document.getElementById('send').click()")
    browser.wait("document.querySelector('.passage')")
    browser.wait("document.getAnimations().length === 0")


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_entities_are_marked_where_they_stand(
    browser: Browser, url: str, width: int, dark: bool
) -> None:
    opened(browser, url, "names", width=width, dark=dark)
    write(browser, "text", STORY)
    asked(browser)
    browser.shoot(f"entities-{width}-{'dark' if dark else 'light'}.png")

    marks = (
        "[...document.querySelectorAll('mark')]"
        ".map(mark => [mark.firstChild.data, mark.lastChild.textContent])"
    )
    assert browser.run(marks) == [
        ["Ada Lovelace", "PER"],
        ["Babbage", "ORG"],
        ["London", "LOC"],
        ["Nobody", "PER"],
    ]
    classes = browser.run("[...document.querySelectorAll('mark')].map(m => m.className)")
    assert classes[0] == classes[3]
    assert len(set(classes)) == 3
    assert browser.run("document.querySelectorAll('.explain').length") == 0
    assert fits(browser, width)
    assert browser.faults(url) == []


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_an_answer_is_marked_in_its_context_and_others_are_listed(
    browser: Browser, url: str, width: int, dark: bool
) -> None:
    opened(browser, url, "years", width=width, dark=dark)
    write(browser, "question", "When was it built?")
    write(browser, "text", CONTEXT)
    asked(browser)
    browser.shoot(f"answer-{width}-{'dark' if dark else 'light'}.png")

    assert browser.run("document.querySelector('.said h2').textContent") == "1889"
    assert browser.run("document.querySelector('.passage mark').textContent") == "1889"
    assert browser.run("document.querySelector('.passage').textContent") == CONTEXT
    bars = "[...document.querySelectorAll('.bars li')].map(li => li.textContent)"
    assert browser.run(bars) == ["188975.0 %", "196837.5 %"]
    assert fits(browser, width)
    assert browser.faults(url) == []


def test_no_answer_is_told_as_such(browser: Browser, url: str) -> None:
    opened(browser, url, "years")
    write(browser, "question", "When?")
    write(browser, "text", "No year is named here.")
    asked(browser)

    assert browser.run("document.querySelector('.said h2').textContent") == (
        "No answer in the context"
    )
    assert browser.run("document.querySelectorAll('.passage mark').length") == 0


def test_a_question_without_words_is_not_sent(browser: Browser, url: str) -> None:
    opened(browser, url, "years")
    write(browser, "text", CONTEXT)
    browser.run("document.getElementById('send').click()")

    assert browser.run("document.activeElement.id") == "question"
    assert browser.run("document.querySelectorAll('.run').length") == 0
