"""The page in Chromium: no errors, no requests, nothing wider than the screen."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
SHOTS = os.environ.get("REPORT_SHOTS")  # a folder to leave screenshots in

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


class Browser:
    """One page, driven by the DevTools protocol over Chromium's own pipe."""

    def __init__(self, profile: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # the shell moves the pipe's ends to descriptors 3 and 4, where Chromium looks for them
        moved = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = ["bash", "-c", moved, "-", str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.reader, self.writer = os.fdopen(ours_in, "rb", 0), os.fdopen(ours_out, "wb", 0)
        self.buffer, self.count, self.events = b"", 0, []  # type: ignore[var-annotated]
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            chunk = self.reader.read(1 << 16)
            assert chunk, "Chromium ended"
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, page: Path, *, width: int, dark: bool = False, height: int = 900) -> None:
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + 20
        while self.run("document.readyState") != "complete":
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def run(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def faults(self) -> list[Any]:
        """Console errors, exceptions and whatever was requested but the page and data URIs."""
        noisy = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
        found = [e for e in self.events if e.get("method") in noisy]
        for event in self.events:
            if event.get("method") == "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                if not url.startswith("data:") and not url.endswith("/report.html"):
                    found.append(url)
        return found

    def shoot(self, name: str) -> None:
        if SHOTS:
            shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
            folder = Path(SHOTS)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.writer.close()
        self.reader.close()
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def test_the_page_is_quiet_fits_every_screen_and_answers(browser, build_sweep, thumbnail):
    page = write_report(build_sweep(), preview=thumbnail)
    for width in (1280, 390):
        for dark in (False, True):
            browser.open(page, width=width, dark=dark)
            browser.shoot(f"report-{width}-{'dark' if dark else 'light'}.png")
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.faults() == []
    _answers_to_clicks(browser)


def _answers_to_clicks(browser: Browser) -> None:
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
    assert browser.faults() == []
