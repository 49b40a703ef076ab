"""What a browser is given: the page, its style and script, the docs, the OpenAPI document.

They hold no secret and are told without a key; the page itself asks for one where it is needed.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from .docs import docs_page
from .exchange import Exchange, Reply
from .handler import Handler, Route
from .openapi import document

FOLDER = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

# Nothing from elsewhere and nothing inline: what a model's card or a file's name says can neither
# run nor fetch. Pictures that a person chooses are shown from memory (blob:).
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@cache
def _reply(path: str) -> Reply:
    match path:
        case "/docs":
            html = docs_page(document())
            return Reply(html.encode(), media="text/html; charset=utf-8", headers=HEADERS)
        case "/openapi.json":
            return Reply(json.dumps(document(), indent=1).encode(), headers=HEADERS)
        case _:
            name, media = FILES[path]
            return Reply((FOLDER / name).read_bytes(), media=media, headers=HEADERS)


async def _page(handler: Handler, exchange: Exchange, path: re.Match[str]) -> Reply:
    return _reply(path.group())


PAGES = tuple(
    Route(re.compile(re.escape(path)), {"GET": _page}, open=True)
    for path in (*FILES, "/docs", "/openapi.json")
)
