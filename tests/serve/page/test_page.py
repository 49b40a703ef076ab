"""The page in Chromium, asking a real model: what a person sees, does and is told."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.client import Client
from tests.chromium import CHROMIUM, Browser
from tests.serve.page.conftest import KEY

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

LOADED = "!document.getElementById('ask').hidden"
TITLES = "[...document.querySelectorAll('.said h2')].map(h => h.textContent)"
TEXT = "the cat 🎉 and one dog"  # 🎉 is one character to Python, two to JavaScript
HOSTILE = "<img src=x onerror=alert(1)>.png"
SCREENS = [(1280, False), (1280, True), (390, False), (390, True)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two images and half of one."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, grey in (("cell 1.png", 90), (HOSTILE, 180)):
        pixels = np.clip(rng.normal(grey, 30, (60, 80, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((240, 180)).save(folder / name, "PNG")
    (folder / "cut.png").write_bytes((folder / "cell 1.png").read_bytes()[:400])
    return [folder / "cell 1.png", folder / HOSTILE, folder / "cut.png"]


def opened(
    browser: Browser, url: str, model: str = "", *, width: int = 1280, dark: bool = False
) -> None:
    """The page with a model chosen."""
    browser.open("about:blank", width=width)  # a change of the fragment alone loads nothing
    browser.open(f"{url}#{model}", width=width, dark=dark)
    browser.wait(LOADED)


def fits(browser: Browser, width: int) -> bool:
    return int(browser.run("document.documentElement.scrollWidth")) <= width


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_images_are_answered_quietly_on_every_screen(
    browser: Browser, url: str, photos: list[Path], width: int, dark: bool
) -> None:
    scheme = "dark" if dark else "light"
    opened(browser, url, width=width, dark=dark)
    browser.shoot(f"page-{width}-{scheme}-empty.png")
    assert fits(browser, width)
    browser.choose_files("#files", photos)
    browser.wait("document.querySelectorAll('.card-image .problem').length === 1")
    browser.wait("document.getAnimations().length === 0")
    browser.shoot(f"page-{width}-{scheme}.png")

    assert fits(browser, width)
    assert browser.faults(url) == []
    assert len(browser.run(TITLES)) == 2


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_the_docs_are_quiet_and_fit_every_screen(
    browser: Browser, url: str, width: int, dark: bool
) -> None:
    browser.open(f"{url}docs", width=width, dark=dark)
    browser.shoot(f"docs-{width}-{'dark' if dark else 'light'}.png")

    assert fits(browser, width)
    assert browser.faults(url) == []


def test_what_is_shown_is_what_the_endpoint_answers(
    browser: Browser, url: str, photos: list[Path]
) -> None:
    with Client(url) as client:
        prediction = client.predict("solar-cells", photos)
    opened(browser, url)
    browser.choose_files("#files", photos)
    browser.wait("document.querySelectorAll('.bars').length === 2")

    bars = browser.run(
        "[...document.querySelectorAll('.bars')].map(list => [...list.children].map(row =>"
        " [row.querySelector('.label').textContent, row.querySelector('.p').textContent]))"
    )
    expected = [
        [[label, f"{100 * p:.1f} %"] for label, p in answer.probabilities.items()]  # type: ignore[union-attr]
        for answer in prediction.answers[:2]
    ]
    assert bars == expected
    assert bars[0] != bars[1]
    assert browser.run(TITLES) == [a.label for a in prediction.answers[:2]]  # type: ignore[union-attr]
    assert prediction.answers[2].error.detail in browser.run("document.body.textContent")  # type: ignore[union-attr]
    head = browser.run("document.querySelector('.run-head').textContent")
    assert f"version 3 (champion) · {prediction.digest[:12]}" in head
    assert re.search(r"[\d.]+ ms here, [\d.]+ ms of it in the server", head)


def test_names_of_files_and_cards_are_text(browser: Browser, url: str, photos: list[Path]) -> None:
    opened(browser, url)
    browser.choose_files("#files", photos[1:2])
    browser.wait("document.querySelector('.bars')")

    assert browser.run("document.querySelector('.card-image .name').textContent") == HOSTILE
    assert browser.run("document.querySelectorAll('img[src=x]').length") == 0
    assert browser.faults(url) == []


def test_dropped_and_pasted_images_are_answered_and_other_files_are_not(
    browser: Browser, url: str
) -> None:
    opened(browser, url)
    browser.run("""
      window.drag = async (kind, field, type) => {
        const canvas = Object.assign(document.createElement('canvas'), {width: 40, height: 30});
        const blob = await new Promise(done => canvas.toBlob(done, 'image/png'));
        const held = new DataTransfer();
        held.items.add(new File([blob], 'drawn', {type}));
        const event = new Event(kind, {bubbles: true, cancelable: true});
        Object.defineProperty(event, field, {value: held});
        document.body.dispatchEvent(event);
      };
      drag('drop', 'dataTransfer', 'image/png').then(() =>
        drag('paste', 'clipboardData', 'image/png')); 0""")
    browser.wait("document.querySelectorAll('.bars').length === 2")
    browser.run("drag('drop', 'dataTransfer', 'application/pdf'); 0")
    browser.wait("document.getElementById('status').textContent.startsWith('No image')")

    assert browser.run("document.querySelectorAll('.run').length") == 2


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_a_text_is_asked_about_with_the_keyboard_alone(
    browser: Browser, url: str, width: int, dark: bool
) -> None:
    with Client(url) as client:
        (answer,) = client.predict("words", TEXT).answers
    opened(browser, url, "words", width=width, dark=dark)
    browser.run("document.getElementById('model').focus()")
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "text"
    browser.type(TEXT)
    browser.press("Tab")
    browser.press("Enter")
    browser.wait("document.querySelector('.said h2')")

    assert browser.run(TITLES) == [answer.label]  # type: ignore[union-attr]
    told = browser.run("document.getElementById('status').textContent")
    assert re.fullmatch(rf"{answer.label}, [<>\d. ]+ %, in [\d.]+ ms", told)  # type: ignore[union-attr]
    assert fits(browser, width)
    browser.press("Tab", modifiers=8)
    browser.press("Enter", modifiers=2)
    browser.wait("document.querySelectorAll('.said h2').length === 2")
    assert browser.faults(url) == []


def test_answers_below_the_screen_are_brought_into_view(browser: Browser, url: str) -> None:
    browser.open("about:blank", width=390)
    browser.open(f"{url}#words", width=390, height=600)
    browser.wait(LOADED)
    browser.run("document.getElementById('text').focus()")
    browser.type(TEXT)
    browser.run("document.getElementById('send').click()")

    browser.wait("document.querySelector('.run-head')?.getBoundingClientRect().top < 400")


def test_everything_that_takes_focus_shows_it_and_has_a_name(browser: Browser, url: str) -> None:
    opened(browser, url)
    names, shown = [], []
    for _ in range(12):
        browser.press("Tab")
        shown.append(
            browser.run(
                "getComputedStyle(document.activeElement).outlineStyle !== 'none' ||"
                " document.activeElement.matches('.drop input')"
            )
        )
        names.append(
            browser.run("document.activeElement.id || document.activeElement.textContent.trim()")
        )
        if names[-1] == "The same from a terminal":
            break

    assert all(shown)
    assert names == [
        "To the answers", "key-toggle", "API", "model", "files", "About this model",
        "The same from a terminal",
    ]  # fmt: skip
    unnamed = browser.run(
        "[...document.querySelectorAll('input, select, textarea')]"
        ".filter(field => !field.labels.length).map(field => field.id)"
    )
    assert unnamed == []


def test_an_empty_text_is_not_sent(browser: Browser, url: str) -> None:
    opened(browser, url, "words")
    browser.run("document.getElementById('send').click()")

    assert browser.run("document.getElementById('status').textContent") == (
        "Write or paste a text first."
    )
    assert browser.run("document.activeElement.id") == "text"
    assert browser.run("document.querySelectorAll('.run').length") == 0


def test_choosing_another_model_changes_what_can_be_given(browser: Browser, url: str) -> None:
    opened(browser, url)
    assert browser.run("document.getElementById('image-field').hidden") is False
    browser.run(
        "const s = document.getElementById('model'); s.value = 'words';"
        "s.dispatchEvent(new Event('change'))"
    )
    browser.wait("document.getElementById('image-field').hidden")

    assert browser.run("document.getElementById('text-field').hidden") is False
    assert browser.run("location.hash") == "#words"
    assert "3 labels: animals, colours, numbers" in browser.run(
        "document.getElementById('empty').textContent"
    )


def test_an_address_that_names_no_model_opens_the_first(browser: Browser, url: str) -> None:
    for typed in ("none", "%", "%E0%A4%A"):
        browser.open("about:blank", width=800)
        browser.open(f"{url}#{typed}", width=800)
        browser.wait("!document.getElementById('ask').hidden")
        assert browser.run("document.getElementById('model').selectedIndex") == 0


def test_images_that_wait_are_asked_of_no_other_model(
    browser: Browser, url: str, tmp_path: Path
) -> None:
    large = [tmp_path / f"{i}.png" for i in range(6)]
    for path in large:
        path.write_bytes(b"no image" * (1 << 20))  # a request each
    opened(browser, url)
    browser.choose_files("#files", large)
    browser.run(
        "const s = document.getElementById('model'); s.value = 'words';"
        "s.dispatchEvent(new Event('change'))"
    )
    browser.wait("document.getElementById('status').textContent.includes('not asked about')")
    assert browser.run("document.querySelectorAll('.run').length") == 0


def test_a_key_is_asked_for_used_and_forgotten(browser: Browser, guarded_url: str) -> None:
    browser.open("about:blank", width=390)
    browser.open(guarded_url, width=390)
    browser.wait("!document.getElementById('trouble').hidden")
    browser.shoot("key-390-light.png")
    assert "A key is needed" in browser.run("document.getElementById('trouble').textContent")
    assert browser.run("document.activeElement.id") == "key"
    browser.type("a-wrong-key-of-some-length")
    browser.press("Enter")
    browser.wait("document.getElementById('trouble').textContent.includes('not one of ours')")
    browser.run("document.getElementById('key').select()")
    browser.type(KEY)
    browser.press("Enter")
    browser.wait(LOADED)

    assert browser.run("document.getElementById('trouble').hidden") is True
    assert browser.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    assert KEY not in browser.run("location.href")
    assert fits(browser, 390)
    browser.open(guarded_url + "?again", width=390)
    browser.wait("!document.getElementById('trouble').hidden")


def explained(browser: Browser) -> None:
    """Press the button under the newest answer, and wait."""
    browser.wait("document.querySelector('.explain button')")
    browser.run("document.querySelector('.explain button').click()")
    browser.wait("document.querySelector('.explain button[aria-pressed=true]')")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_what_a_label_rests_on_is_drawn_over_what_the_model_sees(
    browser: Browser, url: str, photos: list[Path], width: int, dark: bool
) -> None:
    opened(browser, url, width=width, dark=dark)
    browser.choose_files("#files", photos[:1])
    explained(browser)
    browser.shoot(f"explained-{width}-{'dark' if dark else 'light'}.png")

    box = browser.run(
        "(() => { const [i, c] = ['.frame img', '.frame canvas']"
        ".map(s => document.querySelector(s).getBoundingClientRect());"
        " return [c.width / i.width, c.height / i.height, (c.left - i.left) / i.width,"
        " (c.top - i.top) / i.height]; })()"
    )
    # an image of 240 x 180: the middle, 0.875 of the shorter side
    assert box == pytest.approx([0.65625, 0.875, 0.171875, 0.0625], abs=0.01)
    note = browser.run("document.querySelector('.explain .note').textContent")
    assert note.startswith(("Orange: hiding it takes", "Hiding any one part", "Nothing in it"))
    assert fits(browser, width)
    browser.run("document.querySelector('.explain button').click()")
    assert browser.run("document.querySelectorAll('canvas').length") == 0
    assert browser.faults(url) == []


def test_words_are_coloured_where_they_stand(browser: Browser, url: str) -> None:
    with Client(url) as client:
        spans = client.explain("words", TEXT).spans
    opened(browser, url, "words")
    browser.run("document.getElementById('text').focus()")
    browser.type(TEXT)
    browser.run("document.getElementById('send').click()")
    explained(browser)
    browser.shoot("words-1280-light.png")

    marks = "[...document.querySelectorAll('.passage mark')].map(m => [m.className, m.textContent])"
    assert spans is not None
    assert browser.run(marks) == [
        ["for" if one.score >= 0 else "against", TEXT[one.start : one.end]] for one in spans
    ]
    assert [word for _, word in browser.run(marks)][-1] == "dog"
    assert browser.run("document.querySelector('.passage').textContent") == TEXT
    assert browser.faults(url) == []


def test_files_that_are_too_large_for_one_request_come_in_several(
    browser: Browser, url: str, tmp_path: Path
) -> None:
    large = [tmp_path / f"{i}.png" for i in range(3)]
    for path in large:
        path.write_bytes(b"no image" * (1 << 20))  # 8 MiB, of which two and a form are too many
    opened(browser, url)
    browser.choose_files("#files", large)
    browser.wait("document.querySelectorAll('.run:not(.waiting)').length === 3")

    assert "413" not in browser.run("document.body.textContent")
    assert browser.run("document.querySelectorAll('.run .problem').length") == 3
