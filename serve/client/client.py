"""The client, blocking and not: what is sent, retried and read is the same for both."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Generic, Self, TypeVar

import httpx
from pydantic import ValidationError

from orchestrator.errors import SpecError, shown

from ..contract import Embeddings, Explanation, ModelDetails, ModelEntry, Prediction, Problem, Told
from . import calls
from .attempts import CONNECT_TIMEOUT_S, Attempts, Outcome, Pause, Send
from .calls import Call, Input
from .errors import ForeignAnswerError, error_of

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_RETRIES = 3
LONGEST_EXCERPT = 200

T = TypeVar("T", bound=Told)
Connections = TypeVar("Connections", httpx.Client, httpx.AsyncClient)


class _Endpoint(Generic[Connections]):
    """What both clients are told.

    Args:
        url: Where the endpoint is, as in `http://127.0.0.1:8000`.
        key: Sent as `Authorization: Bearer`.
        timeout_s: How long a call may take in all, its retries included; a call can have its own.
        retries: How often a failed call is tried again at most.
        rng: Draws the pauses.
    """

    _connect: type[Connections]

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        rng: random.Random | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise SpecError(
                f"url: {shown(url)} is not an http address, as in http://127.0.0.1:8000"
            )
        if timeout_s <= 0:
            raise SpecError(f"timeout_s: {timeout_s} is not above 0")
        if retries < 0:
            raise SpecError(f"retries: {retries} is below 0. Use 0 to try once")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise SpecError("key: has characters that no header can carry. Use printable ASCII")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._headers = {"Accept": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._attempts = Attempts(retries, time.monotonic, rng or random.Random())
        self._http: Connections = self._connect()

    def _request(self, call: Call[T], timeout_s: float) -> httpx.Request:
        options = {**call.options, "headers": {**self._headers, **call.options.get("headers", {})}}
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        return self._http.build_request(
            call.method, self.url + call.path, timeout=timeout, **options
        )

    def _steps(self, timeout_s: float | None) -> Generator[Send | Pause, Outcome, httpx.Response]:
        return self._attempts.steps(self.timeout_s if timeout_s is None else timeout_s)


class Client(_Endpoint[httpx.Client]):
    """Answers of an endpoint, blocking.

        with Client("http://127.0.0.1:8000") as client:
            answer = client.predict("solar-cells", Path("cell.jpg")).answers[0]

    It may be shared by threads. A call that found no connection, an empty response, 429, 502, 503
    or 504, or a proxy's own 500 (its replica died), is tried again, after a pause, as long as its
    time allows.
    """

    _connect = httpx.Client

    def predict(
        self,
        model: str,
        inputs: Input | Sequence[Input],
        *,
        top: int | None = None,
        labels: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Prediction:
        """An answer for each input, in order; one that cannot be read is answered `Failed`.

        Args:
            model: A name that is served; `models` lists them.
            inputs: One, or a sequence of: a text (str), an image or text file (bytes or
                pathlib.Path), a PIL image, a Question.
            top: How many of the likeliest labels have their probability in an answer.
            labels: Of a zero-shot model, the classes to choose from, by name or description.
            templates: Of a zero-shot model, prompts with `{}` where the class goes.
            timeout_s: How long this call may take in all.

        Raises:
            EndpointError: There is no answer; errors.py has the kinds.
        """
        call = calls.predict(model, inputs, top=top, labels=labels, templates=templates)
        return self._run(call, timeout_s)

    def embed(
        self, model: str, inputs: Input | Sequence[Input], *, timeout_s: float | None = None
    ) -> Embeddings:
        """A vector for each input, in order; None where it cannot be read."""
        return self._run(calls.embed(model, inputs), timeout_s)

    def explain(
        self,
        model: str,
        value: Input,
        *,
        label: str | None = None,
        labels: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Explanation:
        """What in one input speaks for `label`, or for the likeliest label."""
        call = calls.explain(model, value, label=label, labels=labels, templates=templates)
        return self._run(call, timeout_s)

    def models(self, *, timeout_s: float | None = None) -> tuple[ModelEntry, ...]:
        """Everything that is served."""
        return self._run(calls.models(), timeout_s).models

    def model(self, name: str, *, timeout_s: float | None = None) -> ModelDetails:
        """One model, with its card, what it takes and how much of it."""
        return self._run(calls.model(name), timeout_s)

    def _run(self, call: Call[T], timeout_s: float | None) -> T:
        steps = self._steps(timeout_s)
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return read(end.value, call.answer)
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                outcome = None
                continue
            try:
                outcome = self._sent(self._request(call, step.timeout_s), step.timeout_s)
            except httpx.TransportError as err:
                outcome = err

    def _sent(self, request: httpx.Request, timeout_s: float) -> httpx.Response:
        """The whole response; httpx's own time limit is on each part of it."""
        late_s = time.monotonic() + timeout_s
        parts = []
        with closing(self._http.send(request, stream=True)) as response:
            for part in response.iter_raw():
                parts.append(part)
                if time.monotonic() > late_s:
                    raise httpx.ReadTimeout("the answer comes too slowly", request=request)
        content = b"".join(parts)
        return httpx.Response(
            response.status_code, headers=response.headers, content=content, request=request
        )

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient(_Endpoint[httpx.AsyncClient]):
    """The same, to be awaited; `Client` has the words on each method."""

    _connect = httpx.AsyncClient

    async def predict(
        self,
        model: str,
        inputs: Input | Sequence[Input],
        *,
        top: int | None = None,
        labels: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Prediction:
        """As `Client.predict`."""
        call = calls.predict(model, inputs, top=top, labels=labels, templates=templates)
        return await self._run(call, timeout_s)

    async def embed(
        self, model: str, inputs: Input | Sequence[Input], *, timeout_s: float | None = None
    ) -> Embeddings:
        """As `Client.embed`."""
        return await self._run(calls.embed(model, inputs), timeout_s)

    async def explain(
        self,
        model: str,
        value: Input,
        *,
        label: str | None = None,
        labels: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Explanation:
        """As `Client.explain`."""
        call = calls.explain(model, value, label=label, labels=labels, templates=templates)
        return await self._run(call, timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> tuple[ModelEntry, ...]:
        """As `Client.models`."""
        return (await self._run(calls.models(), timeout_s)).models

    async def model(self, name: str, *, timeout_s: float | None = None) -> ModelDetails:
        """As `Client.model`."""
        return await self._run(calls.model(name), timeout_s)

    async def _run(self, call: Call[T], timeout_s: float | None) -> T:
        steps = self._steps(timeout_s)
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return read(end.value, call.answer)
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                outcome = None
                continue
            request = self._request(call, step.timeout_s)
            try:
                async with asyncio.timeout(step.timeout_s):
                    outcome = await self._http.send(request)
            except httpx.TransportError as err:
                outcome = err
            except TimeoutError:
                outcome = httpx.ReadTimeout("the answer comes too slowly", request=request)

    async def aclose(self) -> None:
        """End the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def read(response: httpx.Response, answer: type[T]) -> T:
    """The answer that a response holds.

    Raises:
        ProblemError: It holds a problem.
        ForeignAnswerError: It holds neither.
    """
    if not response.is_success:
        raise error_of(_problem(response)) if response.is_error else _foreign(response)
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as err:
        raise _foreign(response) from err


def _problem(response: httpx.Response) -> Problem:
    """The problem that a response states; what stands before an endpoint states none."""
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        detail = response.text[:LONGEST_EXCERPT].strip()
        title = response.reason_phrase or "no reason given"
        return Problem(title=title, status=response.status_code, detail=detail)


def _foreign(response: httpx.Response) -> ForeignAnswerError:
    return ForeignAnswerError(
        f"{response.request.url}: {response.status_code} with {shown(response.text, most=80)} is "
        "no answer of this product's endpoint. Check the address and its version"
    )
