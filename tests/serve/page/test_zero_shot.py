"""Classes of one's own on the page, before a real CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.bundle.clip_bundles import write_clip_bundle
from orchestrator.spec.clip_models import parse_clip
from orchestrator.spec.prompts import LabelSet
from serve.endpoint import LocalEndpoint
from serve.handler import Handler
from serve.keys import Keys
from serve.limits import Limits
from serve.loading import Model, loaded
from serve.pages import PAGES
from serve.pinning import pinned
from serve.worker import Worker
from tests.chromium import CHROMIUM, Browser
from tests.orchestrator.clip_material import draw
from tests.serve.conftest import running
from tests.serve.page.test_page import fits, opened

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def shapes(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalEndpoint:
    """A real CLIP that knows coloured shapes, loaded as a replica loads it."""
    folder = tmp_path_factory.mktemp("clip") / "bundle"
    labels = LabelSet(labels=("red circle", "blue ring", "white bar"))
    write_clip_bundle(folder, parse_clip(str(clip_folder), base=Path("/")), labels)
    model = Model(pinned(str(folder), name="shapes", registry=None))
    return loaded([model], limits=Limits(), worker=Worker(threads=1, queue=8))[model]


@pytest.fixture(scope="module")
def url(shapes: LocalEndpoint) -> Iterator[str]:
    handler = Handler({"shapes": shapes}, limits=Limits(), keys=Keys({}), routes=PAGES)
    with running(handler) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_classes_of_ones_own_are_chosen_from_and_explained(
    browser: Browser, url: str, tmp_path: Path, width: int, dark: bool
) -> None:
    picture = tmp_path / "green-square.png"
    draw(("green", "square"), np.random.default_rng(0)).save(picture)
    opened(browser, url, "shapes", width=width, dark=dark)
    fields = "document.getElementById('classes').value"
    assert browser.run(fields) == "red circle\nblue ring\nwhite bar"
    browser.run("document.getElementById('classes').select()")
    browser.type("red ring\ngreen square\n\n  blue bar \ngreen square")
    browser.choose_files("#files", [picture])
    browser.wait("document.querySelector('.said h2')")
    browser.run("document.querySelector('.explain button').click()")
    browser.wait("document.querySelector('.frame canvas')")
    browser.wait("document.getAnimations().length === 0")
    browser.shoot(f"classes-{width}-{'dark' if dark else 'light'}.png")

    assert browser.run("document.querySelector('.said h2').textContent") == "green square"
    labels = "[...document.querySelectorAll('.bars .label')].map(label => label.textContent)"
    assert sorted(browser.run(labels)) == ["blue bar", "green square", "red ring"]
    assert fits(browser, width)
    assert browser.faults(url) == []


def test_one_class_alone_is_refused_in_words(browser: Browser, url: str, tmp_path: Path) -> None:
    picture = tmp_path / "green-square.png"
    draw(("green", "square"), np.random.default_rng(0)).save(picture)
    opened(browser, url, "shapes")
    browser.run("document.getElementById('classes').select()")
    browser.type("green square")
    browser.choose_files("#files", [picture])
    browser.wait("document.querySelector('.run > .problem')")

    told = browser.run("document.querySelector('.run > .problem').textContent")
    assert "alone is always right. Give two or more" in told
    assert browser.run("document.querySelectorAll('.frame img').length") == 1
