"""The small specs that an Experiment is made of: task, backbone, input contract, objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from orchestrator.spec.frozen import Frozen

TaskKind = Literal[
    "image-classification",
    "image-multilabel-classification",
    "text-classification",
    "text-multilabel-classification",
    "token-classification",
    "question-answering",
    "zero-shot-image-classification",
]
Modality = Literal["image", "text"]
Metric = Literal[
    "accuracy",
    "f1_macro",
    "roc_auc",
    "log_loss",
    "ece",
    "f1_entity",
    "precision_entity",
    "recall_entity",
    "exact_match",
    "f1_span",
]
Runtime = Literal["auto", "onnx", "torch"]
Interpolation = Literal["bilinear", "bicubic"]
Resize = Literal["shortest", "squash"]

LOWER_IS_BETTER: frozenset[str] = frozenset({"log_loss", "ece"})

_CLASSIFICATION: tuple[Metric, ...] = ("f1_macro", "accuracy", "roc_auc", "log_loss", "ece")
_OF_SPANS: dict[str, tuple[Metric, ...]] = {
    "token-classification": (
        "f1_entity",
        "precision_entity",
        "recall_entity",
        "accuracy",
        "log_loss",
        "ece",
    ),
    "question-answering": ("f1_span", "exact_match"),
}


def modality_of(kind: TaskKind) -> Modality:
    """What a task's inputs are."""
    return "image" if "image" in kind.split("-") else "text"


def is_multilabel(kind: TaskKind) -> bool:
    """Whether an example has any number of labels rather than one."""
    return kind.endswith("-multilabel-classification")


def by_position(kind: TaskKind) -> bool:
    """Whether the head answers for every token of a text, rather than once for all of it."""
    return kind in _OF_SPANS


def has_label_sets(kind: TaskKind) -> bool:
    """Whether an example counts under any number of labels: its own, or its entities' kinds."""
    return is_multilabel(kind) or kind == "token-classification"


def metrics_of(kind: TaskKind) -> tuple[Metric, ...]:
    """What is measured for a task; the first is the objective where none is given."""
    return _OF_SPANS.get(kind, _CLASSIFICATION)


class TaskSpec(Frozen):
    """What is predicted: the kind of answer and its labels.

    The labels of a token classification are the kinds of entity; those of question answering are
    `answer` and, where a question may have none, `no answer`.
    """

    kind: TaskKind
    labels: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """What each output of the head stands for: a label, a tag, or an end of the answer."""
        match self.kind:
            case "token-classification":
                return ("O", *(f"{place}-{kind}" for kind in self.labels for place in "BI"))
            case "question-answering":
                return ("start", "end")
            case _:
                return self.labels


class BackboneSpec(Frozen):
    """A pretrained feature extractor by name, and where its weights come from.

    `weights` is `default` (the library's pretrained weights), `none` (random initialisation), a
    path to a safetensors file or weights-only checkpoint, or `hub:<id>`.

    A text encoder is named by its id on the Hugging Face hub, or by a local folder in the hub's
    format; its name is then the folder's. Its own weights are `default`.

    A CLIP is named `clip:ARCHITECTURE/PRETRAINED`, `clip:hub:OWNER/NAME`, or by a local folder
    (`clip_models.py`); its own weights are `default`.
    """

    name: str
    weights: str = "default"
    folder: str | None = Field(
        None, description="local folder with an encoder's or a CLIP's config, tokenizer and weights"
    )


class InputContract(Frozen):
    """How an image must be prepared for a backbone.

    The shorter side is resized to `size / crop_fraction` pixels, the centre `size` x `size` is cut
    out, values are scaled to 0–1 and normalised by channel with `mean` and `std`. Under `resize:
    squash` both sides are resized instead, whatever the image's shape.
    """

    size: int = Field(ge=8, le=2048)
    crop_fraction: float = Field(gt=0.1, le=1.0)
    interpolation: Interpolation = "bilinear"
    resize: Resize = "shortest"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TextContract(Frozen):
    """How a text must be prepared for an encoder.

    It is tokenized, cut to `size` tokens, the special ones that begin and end it included, and
    padded to the longest of its batch. With an `overlap` nothing is lost: a text of more tokens is
    several inputs, windows that share so many tokens with the next.
    """

    size: int = Field(ge=8, le=65_536, description="tokens of the longest input")
    tokenizer: str = Field(description="digest of the tokenizer")
    pad: int = Field(ge=0, description="token that fills a batch's shorter texts")
    overlap: int | None = Field(
        None, ge=0, description="tokens that neighbouring windows share; None for one input a text"
    )


Contract = InputContract | TextContract


def size_text(contract: Contract) -> str:
    """How large inputs are, in words."""
    unit = "tokens" if isinstance(contract, TextContract) else "px"
    return f"{contract.size} {unit}"


class ObjectiveSpec(Frozen):
    """The validation metric that picks the best epoch, the best trial and the next suggestion."""

    metric: Metric = "f1_macro"
    mode: Literal["max", "min"] = "max"

    @model_validator(mode="after")
    def _mode_fits_metric(self) -> ObjectiveSpec:
        right = "min" if self.metric in LOWER_IS_BETTER else "max"
        if self.mode != right:
            raise ValueError(f"mode {self.mode!r} would seek the worst {self.metric}. Use {right}")
        return self

    def better(self, new: float, old: float | None) -> bool:
        """Whether `new` beats `old`; everything beats `None`."""
        return old is None or (new > old if self.mode == "max" else new < old)

    @property
    def worst(self) -> float:
        """A finite value no better than any metric: what a diverged trial reports."""
        return 0.0 if self.mode == "max" else 1e3
