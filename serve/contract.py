"""What goes over the wire, as frozen data: the endpoint's requests, answers and problems.

Each field has its one owner here: the client reads answers into these models, and the OpenAPI
document is made of them. What a client reads may carry more than it knows (a newer server);
what a server reads may not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Accepts = Literal["image", "text", "question"]
Datatype = Literal["BYTES", "UINT8", "FP32"]

PROBLEM_MEDIA_TYPE = "application/problem+json"


class Told(BaseModel):
    """What the endpoint tells; keys that this version does not know are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Asked(BaseModel):
    """What a client asks; an unknown key is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Problem(Told):
    """Why there is no answer (RFC 9457): what is wrong with which value, and what to do."""

    type: str = Field("about:blank", description="`/problems/SLUG`, one for each kind of problem")
    title: str = Field(description="the kind of problem in a few words")
    status: int = Field(ge=400, le=599)
    detail: str = Field("", description="the value, what is allowed, what to do")
    instance: str | None = Field(None, description="the request's id, as in the access log")
    error: str | None = Field(
        None, description="open inference protocol: title and detail, where its clients look"
    )
    items: tuple[Problem | None, ...] | None = Field(
        None, description="where every item is bad: the problem of each, in order"
    )


class Timing(Told):
    """Where the time went, in milliseconds."""

    read: float = Field(0.0, ge=0, description="receiving the body")
    queue: float = Field(0.0, ge=0, description="waiting for a thread")
    infer: float = Field(0.0, ge=0, description="decoding the inputs, and the model")
    total: float = Field(0.0, ge=0, description="from the first byte to the answer")


class OneLabel(Told):
    """The likeliest label, and the probabilities of the `top` likeliest."""

    label: str
    probabilities: dict[str, Probability] = Field(description="of a label, the likeliest first")


class AnyLabels(Told):
    """The labels at or above the model's threshold, and the `top` likeliest probabilities."""

    labels: tuple[str, ...]
    probabilities: dict[str, Probability] = Field(description="of a label, the likeliest first")


class Entity(Told):
    """A named stretch of the text."""

    label: str
    start: int = Field(ge=0, description="position of the first character")
    end: int = Field(ge=0, description="position after the last character")
    text: str
    score: Probability


class Entities(Told):
    """The entities of a text, in the order of the text."""

    entities: tuple[Entity, ...]


class Alternative(Told):
    """Another stretch of the context that may answer the question."""

    answer: str
    start: int | None = None
    end: int | None = None
    score: Probability


class Span(Told):
    """The stretch of the context that answers the question; an empty one means: no answer."""

    answer: str
    start: int | None = Field(None, description="position in the context, in characters")
    end: int | None = None
    score: Probability
    alternatives: tuple[Alternative, ...] = ()


class Failed(Told):
    """This input has no answer; the others of the request do."""

    error: Problem


Answer = OneLabel | AnyLabels | Entities | Span | Failed


class _From(Told):
    """Which model answered."""

    model: str
    version: str = Field(description="of the bundle, in the registry")
    alias: str | None = Field(None, description="the alias that led to this version")
    digest: str = Field(description="SHA-256 of the bundle that answered")
    timing_ms: Timing


class Prediction(_From):
    """One answer for every input, in order."""

    answers: tuple[Answer, ...]


class Embeddings(_From):
    """One vector for every input, in order; null where `errors` has the reason."""

    embeddings: tuple[tuple[float, ...] | None, ...]
    errors: dict[int, Problem] = Field(
        default_factory=dict, description="position of the input → problem"
    )


class OcclusionMap(Told):
    """How far the label's probability falls when a cell of the image is hidden.

    `values` is `rows` × `cols`, from the top left; below zero, hiding the cell helps.
    """

    rows: int = Field(ge=1)
    cols: int = Field(ge=1)
    values: tuple[tuple[float, ...], ...]


class Attribution(Told):
    """How much a stretch of the text speaks for the label."""

    start: int = Field(ge=0)
    end: int = Field(ge=0)
    score: float


class Explanation(_From):
    """What in the input speaks for `label`: a map of an image, or stretches of a text."""

    label: str
    map: OcclusionMap | None = None
    spans: tuple[Attribution, ...] | None = None


class ModelEntry(Told):
    """A model that is served."""

    name: str
    version: str
    alias: str | None = None
    task: str
    labels: tuple[str, ...]
    digest: str
    metrics: dict[str, float] = Field(
        default_factory=dict, description="on the test set, or else on validation"
    )


class ModelList(Told):
    """Everything that is served."""

    models: tuple[ModelEntry, ...]


class Served(Told):
    """What one version did since the application started."""

    requests: int = Field(description="that it answered to clients")
    errors: int = Field(description="that were its own fault, whoever answered them then")
    mean_ms: float | None = Field(
        None, description="of an answer, those that were only compared included"
    )


class Candidate(Told):
    """Another version that proves itself beside the one that is trusted."""

    version: str
    alias: str | None = None
    digest: str
    mode: str = Field(description="`canary`: it answers a share of requests; `shadow`: none")
    share: Probability = Field(description="of requests that it answers")
    compared: dict[str, int] = Field(default_factory=dict, description="answers by how they agree")
    uncompared: dict[str, int] = Field(
        default_factory=dict, description="requests that were not compared, by why"
    )
    agreement: Probability | None = Field(None, description="share of compared answers that agree")
    versions: dict[str, Served] = Field(default_factory=dict)


class ModelDetails(ModelEntry):
    """A model with its card, what it takes and how much of it."""

    card: str = Field("", description="Markdown")
    input: dict[str, Any] = Field(default_factory=dict, description="how inputs are prepared")
    limits: dict[str, Any] = Field(default_factory=dict, description="most bytes, pixels, items …")
    accepts: tuple[Accepts, ...]
    zero_shot: bool = Field(False, description="whether requests may bring their own labels")
    candidate: Candidate | None = Field(None, description="while a newer version proves itself")


class ImageItem(Asked):
    """One encoded image."""

    image: str = Field(description="base64 of a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file")


class TextItem(Asked):
    """One text."""

    text: str


class QuestionItem(Asked):
    """A question, and the text that holds its answer."""

    question: str
    context: str


Item = ImageItem | TextItem | QuestionItem


class PredictRequest(Asked):
    """What to answer, and how."""

    inputs: tuple[Item, ...] = Field(min_length=1)
    top: int | None = Field(None, ge=1, description="how many of the likeliest labels are told")
    labels: tuple[str, ...] | None = Field(
        None, description="zero-shot models: the classes to choose from, by name or description"
    )
    templates: tuple[str, ...] | None = Field(
        None, description="zero-shot models: prompts with `{}` where the class goes"
    )


class EmbedRequest(Asked):
    """What to embed."""

    inputs: tuple[Item, ...] = Field(min_length=1)


class ExplainRequest(Asked):
    """Which label of one input to explain; the likeliest when none is named."""

    inputs: tuple[Item, ...] = Field(min_length=1, max_length=1)
    label: str | None = None
    labels: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None


class Tensor(Told):
    """A tensor of the open inference protocol, its values in row-major order."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: tuple[Any, ...]


class WantedTensor(Told):
    """An output that a request of the open inference protocol asks for."""

    name: Literal["probabilities", "label", "entities", "answer", "score"]


class InferRequest(Told):
    """A request of the open inference protocol: a tensor `image` or `text`, or one `question` and
    one `context`."""

    id: str | None = None
    inputs: tuple[Tensor, ...] = Field(min_length=1, max_length=2)
    outputs: tuple[WantedTensor, ...] | None = None


class InferResponse(Told):
    """The answer of the open inference protocol."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: tuple[Tensor, ...]


class TensorMetadata(Told):
    """What a tensor of the open inference protocol looks like; -1 is any length."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class InferMetadata(Told):
    """What a model takes and gives in the open inference protocol."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    parameters: dict[str, Any] = Field(default_factory=dict)


class ServerMetadata(Told):
    """Which server of the open inference protocol this is."""

    name: str
    version: str
    extensions: tuple[str, ...]


class Alive(Told):
    """The process answers."""

    alive: bool


class Live(Told):
    """The same in the open inference protocol."""

    live: bool


class Ready(Told):
    """Every model has answered a probe."""

    ready: bool
    models: dict[str, bool]


class ModelReady(Told):
    """One model has answered a probe."""

    name: str
    ready: bool
