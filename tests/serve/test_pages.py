"""What a browser is given: whole, from here alone, without a key."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator import report
from serve.docs import EXAMPLES, docs_page
from serve.handler import Handler
from serve.keys import Keys
from serve.openapi import document
from serve.pages import FILES, FOLDER, PAGES
from tests.serve.conftest import ask, running
from tests.serve.material import image_file

KEYS = Keys({"me": hashlib.sha256(b"k" * 32).hexdigest()})


@pytest.fixture(scope="module")
def guarded(plain: Handler) -> Handler:
    """The application with its pages, and a key that every other request needs."""
    return Handler(plain.endpoints, limits=plain.limits, keys=KEYS, routes=PAGES)


class Page(HTMLParser):
    """What a page refers to, and what it runs or styles in place."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: set[str] = set()
        self.inline: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.references += [str(named[key]) for key in ("src", "href") if key in named]
        self.ids.add(str(named.get("id")))
        self.inline += [key for key in named if key == "style" or key.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in named):
            self.inline.append(tag)


@pytest.mark.parametrize("path", [*FILES, "/docs", "/openapi.json"])
def test_pages_are_told_without_a_key_and_may_ask_nothing_of_elsewhere(
    guarded: Handler, path: str
) -> None:
    response = asyncio.run(ask(guarded, "GET", path))

    assert response.status_code == 200
    assert len(response.content) > 100
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:|\*", policy)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert asyncio.run(ask(guarded, "GET", "/v1/models")).status_code == 401


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_refers_to_what_is_there_by_relative_addresses(guarded: Handler, path: str) -> None:
    page = Page(asyncio.run(ask(guarded, "GET", path)).text)

    assert page.inline == [], "the policy forbids scripts and styles in place"
    for reference in page.references:
        if reference.startswith("#"):
            assert reference[1:] in page.ids
            continue
        assert not reference.startswith(("/", "http")), (
            "a prefix before the endpoint would break it"
        )
        response = asyncio.run(ask(guarded, "GET", f"/{reference.removeprefix('.')}"))
        assert response.status_code == 200, reference


def test_pages_are_read_only(guarded: Handler) -> None:
    assert asyncio.run(ask(guarded, "POST", "/", content=b"x")).status_code == 405


@pytest.mark.parametrize(
    "path", ["/page/index.html", "/page.css/", "/%2e%2e/pages.py", "/pages.py"]
)
def test_nothing_beside_the_pages_can_be_had(guarded: Handler, path: str) -> None:
    assert asyncio.run(ask(guarded, "GET", path)).status_code in (401, 404)


def test_the_docs_show_every_operation_and_every_piece_of_data() -> None:
    page = docs_page(document())

    ids = Page(page).ids
    for path, methods in document()["paths"].items():
        assert path in page
        assert {one["operationId"] for one in methods.values()} <= ids
    assert {f"schema-{name}" for name in document()["components"]["schemas"]} <= ids


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_in_the_docs_do_what_they_say(plain: Handler, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(image_file((250, 10, 10), form="JPEG"))
    statuses = {}
    with running(plain) as port:
        for title, example in EXAMPLES:
            if example.startswith("curl"):
                name = "lengths" if title == "A text" else "colours"
                command = example.format(url=f"http://127.0.0.1:{port}").replace("NAME", name)
                words = [*shlex.split(command), "--silent", "--write-out", "\n%{http_code}"]
                done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
                statuses[title] = done.stdout
    answered = {title: out.endswith("\n200") for title, out in statuses.items()}
    # this application has no model that takes questions, and none that takes labels
    assert answered == {
        "One image, as it is": True,
        "Several at once": True,
        "A text": True,
        "A question": False,
        "Zero-shot, with your own classes": False,
    }
    assert "this model has labels of its own" in statuses["Zero-shot, with your own classes"]
    assert "question" in statuses["A question"]


def test_the_docs_escape_what_they_are_given() -> None:
    hostile = {**document(), "info": {**document()["info"], "description": "<script>alert(1)"}}

    assert "<script>" not in docs_page(hostile)


def test_page_and_report_have_one_look() -> None:
    def tokens(path: Path) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, value in re.findall(r"(--[\w-]+):\s*([^;]+);", path.read_text(encoding="utf-8")):
            found.setdefault(name, []).append(" ".join(value.split()))
        return found

    of_report = tokens(Path(report.__file__).parent / "style.css")
    of_page = tokens(FOLDER / "page.css")
    drawn = {name for name in of_report if re.fullmatch(r"--(cell|share|p)", name)}
    of_report = {name: values for name, values in of_report.items() if name not in drawn}
    assert len(of_report) > 25
    assert {name: of_page[name] for name in of_report} == of_report


def test_the_script_shows_text_as_text() -> None:
    script = (FOLDER / "page.js").read_text(encoding="utf-8")

    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    assert not re.search(r"localStorage|sessionStorage|document\.cookie|indexedDB", script)
