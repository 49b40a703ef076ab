"""How much a request may bring and how long it may take; no client can raise any of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from orchestrator.spec.frozen import Frozen

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=600)]


class Limits(Frozen):
    """Bounds on requests, each checked before the work that it bounds is done."""

    body_bytes: Count = Field(16 << 20, description="of one request")
    bytes_at_once: Count = Field(
        256 << 20, description="of all requests that a replica is reading or has queued"
    )
    items: Count = Field(32, description="inputs in one request")
    pixels: Count = Field(
        25_000_000, description="width × height of an image, read from its header before decoding"
    )
    animations: bool = Field(
        False, description="whether images of several frames are taken, for their first one"
    )
    text_chars: Count = Field(100_000, description="of one text, or of a question's context")
    labels: Count = Field(1000, description="zero-shot: labels in one request")
    templates: Count = Field(100, description="zero-shot: prompt templates in one request")
    prompts: Count = Field(
        2000, description="zero-shot: labels × templates in one request, each a text to embed"
    )
    prompt_chars: Count = Field(2000, description="of one label, template or question")
    read_s: Seconds = Field(15.0, description="until the whole body must have arrived")
    answer_s: Seconds = Field(30.0, description="until the answer must be ready")
    queue: Annotated[int, Field(ge=0)] = Field(
        64, description="requests that wait for a replica's threads; one more is answered 503"
    )
