"""A served bundle: requests in, answers out, computed off the event loop."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, assert_never, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from orchestrator.bundle.predictor import Predictor
from orchestrator.bundle.preparing import Input
from orchestrator.data.inputs import Prepared
from orchestrator.errors import DataError

from . import inference_protocol
from .bodies import Body, Submission, parse
from .entry import Entry
from .items import Checked, Item, Question
from .problems import Refusal, all_refused
from .worker import Worker

Verb = Literal["predict", "embed", "explain", "infer"]
Answer = dict[str, Any] | Refusal

DEFAULT_TOP = 5

_LOG = logging.getLogger("transfer_orchestrator.serve")


@dataclass(frozen=True)
class Answered:
    """What one version of a model made of a request.

    Attributes:
        entry: Of the version; every answer is of this one alone.
        content: The verb's own part of the answer.
        n_items: Inputs in the request.
        n_refused: Those of them that have a problem instead of an answer.
        queued_s: Waited for a thread.
        ran_s: Decoded and computed.
    """

    entry: Entry
    content: dict[str, Any]
    n_items: int
    n_refused: int = 0
    queued_s: float = 0.0
    ran_s: float = 0.0


class Endpoint(Protocol):
    """Something that answers requests to one name, here or in another process."""

    @property
    def entry(self) -> Entry:
        """The version that answers."""

    async def ask(self, verb: Verb, body: Body) -> Answered:
        """The answer to a request.

        Raises:
            Refusal: Nothing in it can be answered, or not now.
        """

    async def probe(self) -> bool:
        """Whether it answers a request of its own."""


@runtime_checkable
class Embedding(Protocol):
    """A predictor that tells what its head reads."""

    def embeddings(self, views: Sequence[Prepared]) -> npt.NDArray[np.float32]:
        """Features: float32 [N, D]."""


@dataclass
class LocalEndpoint:
    """A bundle whose model is in this process.

    Attributes:
        entry: What it is.
        predictor: Ready.
        worker: The threads that it computes in, which endpoints share.
    """

    entry: Entry
    predictor: Predictor
    worker: Worker
    _probed: bool = field(default=False, init=False)

    async def ask(self, verb: Verb, body: Body) -> Answered:
        done = await self.worker.run(partial(self._answer, verb, body))
        content, items = done.value
        return Answered(
            self.entry,
            content,
            n_items=len(items),
            n_refused=sum(isinstance(item, Refusal) for item in items),
            queued_s=done.queued_s,
            ran_s=done.ran_s,
        )

    async def probe(self) -> bool:
        if not self._probed:
            done = await self.worker.run(self.answers_probe)
            self._probed = done.value
        return self._probed

    def answers_probe(self) -> bool:
        """Whether the model answers a plain input now."""
        (answer,) = self._answers(Submission((sample(self.entry),)), top=1)
        return not isinstance(answer, Refusal)

    def _answer(self, verb: Verb, body: Body) -> tuple[dict[str, Any], Sequence[object]]:
        """The content of an answer, and what became of each input."""
        limits, accepts = self.entry.limits, self.entry.accepts
        if verb == "infer":
            asked = inference_protocol.parse(body.data, entry=self.entry)
            answers = self._answers(asked.submission, top=len(self.entry.labels))
            return inference_protocol.rendered(answers, asked, entry=self.entry), answers
        submission = parse(body, accepts=accepts, limits=limits)
        if (submission.labels or submission.templates) and not self.entry.zero_shot:
            raise Refusal(
                "unsuitable", "labels: this model has labels of its own. Leave the key out"
            )
        match verb:
            case "predict":
                answers = self._answers(submission, top=submission.top or DEFAULT_TOP)
                return {"answers": [_told(answer) for answer in answers]}, answers
            case "embed":
                vectors = self._embeddings(submission.items)
                return _embedded(vectors), vectors
            case "explain":
                raise Refusal("unoffered", f"{self.entry.name} does not explain its answers")
            case _:
                assert_never(verb)

    def _answers(self, submission: Submission, *, top: int) -> list[Answer]:
        """An answer or a problem for each input, in order.

        Raises:
            Refusal: There is no answer at all.
        """
        answers: list[Answer] = [
            item if isinstance(item, Refusal) else {} for item in submission.items
        ]
        good = [i for i, item in enumerate(submission.items) if not isinstance(item, Refusal)]
        inputs = [cast(Item, submission.items[i]) for i in good]
        for i, answer in zip(good, self._together(inputs, top=top), strict=True):
            answers[i] = answer
        _refuse_if_nothing(answers)
        return answers

    def _together(self, inputs: Sequence[Item], *, top: int) -> list[Answer]:
        """The answers to a batch; where it fails as a whole, each input's alone."""
        try:
            return [_checked(answer) for answer in self._predict(inputs, top)]
        except Exception:
            if len(inputs) == 1:
                raise
            _LOG.exception("%s failed on %d inputs at once", self.entry.name, len(inputs))
        return [self._alone(value, top=top) for value in inputs]

    def _alone(self, value: Item, *, top: int) -> Answer:
        try:
            return _checked(next(iter(self._predict([value], top))))
        except Exception:  # noqa: BLE001  (logged; the other inputs must not fail with this one)
            _LOG.exception("%s failed on one input", self.entry.name)
            return Refusal("internal", "The model failed on this input")

    def _predict(self, inputs: Sequence[Item], top: int) -> Iterable[dict[str, Any]]:
        if not inputs:
            return ()
        return self.predictor.predict(cast(Sequence[Input], inputs), top=top)

    def _embeddings(self, items: Sequence[Checked]) -> list[list[float] | Refusal]:
        if not isinstance(self.predictor, Embedding):
            raise Refusal("unoffered", f"{self.entry.name} gives no embeddings")
        preparer = self.predictor.preparer
        found: list[list[float] | Refusal] = []
        read: list[Any] = []
        for item in items:
            try:
                read.append(preparer.read(cast(Input, _raised(item))))
            except Refusal as refused:
                found.append(refused)
            except (DataError, OSError, ValueError) as err:
                found.append(Refusal("undecodable", _reason(err)))
            else:
                found.append([])
        if read:
            vectors = iter(self.predictor.embeddings(preparer.batch(read)).tolist())
            found = [one if isinstance(one, Refusal) else next(vectors) for one in found]
        _refuse_if_nothing(found)
        return found


def sample(entry: Entry) -> Item:
    """A plain input that every model of the kind must answer."""
    match entry.accepts:
        case "image":
            side = entry.bundle.input.size
            file = io.BytesIO()
            Image.new("RGB", (side, side), (128, 128, 128)).save(file, "PNG")
            return file.getvalue()
        case "text":
            return "One short text."
        case "question":
            return Question("What is short?", "This text is short.")
        case _:
            assert_never(entry.accepts)


def _raised(item: Checked) -> Item:
    if isinstance(item, Refusal):
        raise item
    return item


def _refuse_if_nothing(found: Sequence[object]) -> None:
    refused = tuple(item for item in found if isinstance(item, Refusal))
    if len(refused) == len(found):
        raise all_refused(refused)


def _checked(answer: dict[str, Any]) -> Answer:
    """A predictor's answer without the name of its input."""
    if "error" in answer:
        return Refusal("undecodable", str(answer["error"]))
    told = {key: value for key, value in answer.items() if key != "uri"}
    if not all(map(math.isfinite, told.get("probabilities", {}).values())):
        return Refusal("internal", "The model's answer to this input is not finite")
    return told


def _told(answer: Answer) -> dict[str, Any]:
    return {"error": answer.document()} if isinstance(answer, Refusal) else answer


def _embedded(found: Sequence[list[float] | Refusal]) -> dict[str, Any]:
    return {
        "embeddings": [None if isinstance(one, Refusal) else one for one in found],
        "errors": {
            str(i): one.document() for i, one in enumerate(found) if isinstance(one, Refusal)
        },
    }


def _reason(err: Exception) -> str:
    return str(getattr(err, "reason", None) or err)
