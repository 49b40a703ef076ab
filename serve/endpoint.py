"""A served bundle: requests in, answers out, computed off the event loop."""

from __future__ import annotations

import asyncio
import io
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, assert_never, cast

from PIL import Image

from orchestrator.bundle.attribution import explain
from orchestrator.bundle.predictor import NOT_FINITE, Predictor
from orchestrator.bundle.preparing import Input
from orchestrator.bundle.zero_shot import ZeroShotPredictor
from orchestrator.errors import DataError, SpecError, listing, reason_of
from orchestrator.spec.parts import by_position
from orchestrator.spec.prompts import TEMPLATES, parse_label_set, with_templates

from . import inference_protocol
from .bodies import Body, Submission, parse
from .entry import Entry, Identity
from .items import Checked, Item, Question
from .limits import Limits
from .options import check_prompts
from .problems import Refusal, all_refused
from .watching import Watched
from .worker import Worker

Verb = Literal["predict", "embed", "explain", "infer"]
Answer = dict[str, Any] | Refusal

_OPTIONS: dict[Verb, tuple[str, ...]] = {
    "predict": ("top", "labels", "templates"),
    "explain": ("label", "labels", "templates"),
    "embed": (),
}
PREDICTING: tuple[Verb, ...] = ("predict", "infer")
DEFAULT_TOP = 5
PROBED_EVERY_S = 10.0

_LOG = logging.getLogger("transfer_orchestrator.serve")


@dataclass(frozen=True)
class Answered:
    """What one version of a model made of a request.

    Attributes:
        by: The version; every answer is of this one alone.
        content: The verb's own part of the answer.
        n_items: Inputs in the request.
        n_refused: Those of them that have a problem instead of an answer.
        n_failed: Those of these that the model is to blame for.
        gists: What versions of a model must agree in, of each input that was predicted.
        queued_s: Waited for a thread.
        ran_s: Decoded and computed.
    """

    by: Identity
    content: dict[str, Any]
    n_items: int
    n_refused: int = 0
    n_failed: int = 0
    gists: tuple[Any, ...] = ()
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

    async def probe(self) -> None:
        """Answer a request of its own, or raise."""


@dataclass
class LocalEndpoint:
    """A bundle whose model is in this process.

    Attributes:
        entry: What it is.
        predictor: Ready.
        worker: The threads that it computes in, which endpoints share.
        explainer: Those of explanations, which take dozens of passes each; `worker` when None.
        watched: The same, where drift is watched: it answers what clients ask.
        open_one: The same, where requests may bring their own labels.
        well_at_s: When it answered last, on the monotonic clock.
    """

    entry: Entry
    predictor: Predictor
    worker: Worker
    explainer: Worker | None = None
    watched: Watched | None = None
    open_one: ZeroShotPredictor | None = None
    well_at_s: float = field(default=-math.inf, init=False)

    async def ask(self, verb: Verb, body: Body) -> Answered:
        worker = self.explainer if verb == "explain" and self.explainer else self.worker
        done = await worker.run(partial(self._answer, verb, body))
        content, items = done.value
        refused = [item for item in items if isinstance(item, Refusal)]
        self.well_at_s = time.monotonic()
        return Answered(
            self.entry.identity,
            content,
            n_items=len(items),
            n_refused=len(refused),
            n_failed=sum(item.status >= 500 for item in refused),
            gists=tuple(map(gist, items)) if verb in PREDICTING else (),
            queued_s=done.queued_s,
            ran_s=done.ran_s,
        )

    async def probe(self) -> None:
        """Nothing where it has answered of late; else it answers an input of its own now.

        The probe has a thread to itself: a queue of requests before it is no illness.
        """
        if time.monotonic() - self.well_at_s > PROBED_EVERY_S:
            await asyncio.to_thread(self.check)

    def check(self) -> None:
        """Answer a plain input.

        Raises:
            Refusal: The model cannot.
        """
        self._answers(Submission((sample(self.entry),)), top=1, by=self.predictor)
        self.well_at_s = time.monotonic()

    def _answer(self, verb: Verb, body: Body) -> tuple[dict[str, Any], Sequence[object]]:
        """The content of an answer, and what became of each input."""
        limits, accepts = self.entry.limits, self.entry.accepts
        by = self.watched or self.predictor
        if verb == "infer":
            asked = inference_protocol.parse(body.data, entry=self.entry)
            answers = self._answers(asked.submission, top=len(self.entry.labels), by=by)
            return inference_protocol.rendered(answers, asked, entry=self.entry), answers
        submission = parse(body, accepts=accepts, limits=limits)
        _refuse_unasked(verb, submission)
        if (submission.labels or submission.templates) and not self.entry.zero_shot:
            raise Refusal(
                "unsuitable", "labels: this model has labels of its own. Leave the key out"
            )
        explained = self.predictor
        if self.open_one is not None and (submission.labels or submission.templates):
            by = explained = _labelled(self.open_one, submission, limits)
        match verb:
            case "predict":
                answers = self._answers(submission, top=submission.top or DEFAULT_TOP, by=by)
                return {"answers": [_told(answer) for answer in answers]}, answers
            case "embed":
                vectors = self._embeddings(submission.items)
                return _embedded(vectors), vectors
            case "explain":
                self._refuse_unexplained()
                return _explanation(explained, submission), submission.items
            case _:
                assert_never(verb)

    def _refuse_unexplained(self) -> None:
        kind = self.entry.bundle.task.kind
        if by_position(kind):
            raise Refusal(
                "unoffered",
                f"{kind} gives no label to a whole input, which could be explained. Use :predict",
            )

    def _answers(self, submission: Submission, *, top: int, by: Predictor) -> list[Answer]:
        """An answer or a problem for each input, in order.

        Raises:
            Refusal: There is no answer at all.
        """
        answers: list[Answer] = [
            item if isinstance(item, Refusal) else {} for item in submission.items
        ]
        good = [i for i, item in enumerate(submission.items) if not isinstance(item, Refusal)]
        inputs = [cast(Item, submission.items[i]) for i in good]
        for i, answer in zip(good, self._together(inputs, top=top, by=by), strict=True):
            answers[i] = answer
        _refuse_if_nothing(answers)
        return answers

    def _together(self, inputs: Sequence[Item], *, top: int, by: Predictor) -> list[Answer]:
        """The answers to a batch; where it fails as a whole, each input's alone."""
        try:
            return [_checked(answer) for answer in _predict(by, inputs, top)]
        except Exception:
            if len(inputs) == 1:
                raise
            _LOG.exception("%s failed on %d inputs at once", self.entry.name, len(inputs))
        return [self._alone(value, top=top, by=by) for value in inputs]

    def _alone(self, value: Item, *, top: int, by: Predictor) -> Answer:
        try:
            return _checked(next(iter(_predict(by, [value], top))))
        except Exception:  # noqa: BLE001  (logged; the other inputs must not fail with this one)
            _LOG.exception("%s failed on one input", self.entry.name)
            return Refusal("internal", "The model failed on this input")

    def _embeddings(self, items: Sequence[Checked]) -> list[list[float] | Refusal]:
        preparer = self.predictor.preparer
        found: list[list[float] | Refusal] = []
        read: list[Any] = []
        for item in items:
            try:
                read.append(preparer.read(cast(Input, _raised(item))))
            except Refusal as refused:
                found.append(refused)
            except (DataError, OSError, ValueError) as err:
                found.append(Refusal("undecodable", reason_of(err)))
            else:
                found.append([])
        if read:
            features = self.predictor.embeddings(preparer.batch(read))
            vectors = iter(preparer.merged(read, features).tolist())
            found = [one if isinstance(one, Refusal) else next(vectors) for one in found]
        _refuse_if_nothing(found)
        return found


def _refuse_unasked(verb: Verb, submission: Submission) -> None:
    """Refuse what a verb has no use for, rather than leave it out without a word."""
    offered = _OPTIONS[verb]
    for name in ("top", "label", "labels", "templates"):
        if getattr(submission, name) is not None and name not in offered:
            allowed = (
                f"Allowed beside the inputs: {listing(offered)}" if offered else "Leave it out"
            )
            raise Refusal("malformed", f"{name}: :{verb} has no use for it. {allowed}")


def _predict(by: Predictor, inputs: Sequence[Item], top: int) -> Iterable[dict[str, Any]]:
    return by.predict(cast(Sequence[Input], inputs), top=top) if inputs else ()


def gist(answer: Any) -> Any:
    """What two versions must agree in; their probabilities may differ."""
    if isinstance(answer, Refusal):
        return (answer.slug,)  # no label is a tuple
    if "entities" in answer:
        return [(e["label"], e["start"], e["end"]) for e in answer["entities"]]
    if "labels" in answer:
        return sorted(answer["labels"])
    return answer.get("label", answer.get("answer"))


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
        failed = answer["error"] == NOT_FINITE
        return Refusal("internal" if failed else "undecodable", str(answer["error"]))
    return {key: value for key, value in answer.items() if key != "uri"}


def _labelled(open_one: ZeroShotPredictor, submission: Submission, limits: Limits) -> Predictor:
    """The model under a request's labels or templates; what a request leaves open is the bundle's.

    Raises:
        Refusal: Labels or templates that cannot be, too many prompts, or such that are too long.
    """
    asked = open_one.own_labels
    try:
        if submission.labels is not None:
            own, asked = asked, parse_label_set(list(submission.labels), source="labels")
            asked = asked.completed_by(own)
        asked = with_templates(asked, submission.templates or ())
        named = asked.templates
        n_templates = len(TEMPLATES[named] if isinstance(named, str) else named)
        check_prompts(len(asked.labels), n_templates, limits)
        return open_one.labelled(asked)
    except SpecError as err:
        raise Refusal("unsuitable", str(err)) from err


def _explanation(by: Predictor, submission: Submission) -> dict[str, Any]:
    """What the likeliest label, or the one asked for, rests on in the one input."""
    if len(submission.items) != 1:
        raise Refusal("too-many", f"{len(submission.items)} inputs. One at a time can be explained")
    value = cast(Input, _raised(submission.items[0]))
    try:
        return explain(by, value, label=submission.label).to_json()
    except SpecError as err:
        raise Refusal("unsuitable", str(err)) from err
    except (DataError, OSError, ValueError) as err:
        raise Refusal("undecodable", reason_of(err)) from err


def _told(answer: Answer) -> dict[str, Any]:
    return {"error": answer.document()} if isinstance(answer, Refusal) else answer


def _embedded(found: Sequence[list[float] | Refusal]) -> dict[str, Any]:
    return {
        "embeddings": [None if isinstance(one, Refusal) else one for one in found],
        "errors": {
            str(i): one.document() for i, one in enumerate(found) if isinstance(one, Refusal)
        },
    }
