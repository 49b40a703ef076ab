"""The page in Chromium: no errors, no requests, nothing wider than the screen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.report import write_report
from tests.chromium import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def test_the_page_is_quiet_fits_every_screen_and_answers(browser, build_sweep, thumbnail):
    page = write_report(build_sweep(), preview=thumbnail)
    for width in (1280, 390):
        for dark in (False, True):
            browser.open(page.as_uri(), width=width, dark=dark)
            browser.shoot(f"report-{width}-{'dark' if dark else 'light'}.png")
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.faults(page.as_uri()) == []
    _answers_to_clicks(browser, page.as_uri())


def _answers_to_clicks(browser: Browser, url: str) -> None:
    browser.run("document.querySelector('.board th button').click()")
    ranks = browser.run("[...document.querySelectorAll('.board tbody tr')].map(r => r.dataset.t)")
    browser.run("document.querySelector('.board th button').click()")
    turned = browser.run("[...document.querySelectorAll('.board tbody tr')].map(r => r.dataset.t)")
    assert sorted(ranks) == sorted(turned)
    assert ranks[0] != turned[0]
    browser.run(
        "const s = document.querySelector('#cost select'); s.selectedIndex = 1;"
        "s.dispatchEvent(new Event('change'))"
    )
    assert browser.run("[...document.querySelectorAll('#cost [data-variant]')].map(v => v.hidden)")[
        :2
    ] == [True, False]
    browser.run(
        "document.querySelector('#search .line').dispatchEvent("
        "new PointerEvent('pointermove', {bubbles: true, clientX: 50, clientY: 50}))"
    )
    assert browser.run("document.getElementById('tip').textContent")
    assert browser.faults(url) == []
