"""The manifest: what bundle.json says about the files beside it, and how it is kept honest."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, ValidationError, field_validator

from orchestrator.bundle.latency import LatencyCurve
from orchestrator.errors import BundleError, IntegrityError
from orchestrator.spec.frozen import Frozen, digest_of
from orchestrator.spec.parts import BackboneSpec, Contract, TaskSpec
from orchestrator.spec.strategy import Strategy

MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 16 << 20
FORMAT: Final = "transfer-orchestrator-bundle"
FORMAT_VERSION = 2  # 2 says whether there is a model.onnx

FileName = Literal[
    "model.safetensors",
    "experiment.json",
    "record.json",
    "MODEL_CARD.md",
    "model.onnx",
    "config.json",
    "tokenizer.json",
    "drift.json",
    "open_clip_config.json",
    "text.safetensors",
    "tokenizer_config.json",
]
FILE_NAMES: tuple[FileName, ...] = get_args(FileName)
REQUIRED_FILES: tuple[FileName, ...] = FILE_NAMES[:4]

Cut = int | Literal["features"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(Frozen):
    """What one file's bytes must be."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class ClassRow(Frozen):
    """How well one label is found."""

    label: str
    precision: float | None = None
    recall: float | None = None
    exact_match: float | None = None
    f1: float
    roc_auc: float | None = None
    support: int


class Evaluation(Frozen):
    """What a model scored on one labelled set.

    The last three fields are what `Task.details` returns.
    """

    metrics: dict[str, float]
    n_examples: Annotated[int, Field(ge=0)] | None = None
    intervals: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="metric → 95 % interval"
    )
    per_class: tuple[ClassRow, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = Field(
        None, description="counts; row is the true label, column the predicted one"
    )
    reliability: tuple[dict[str, float], ...] = ()


class Scores(Frozen):
    """The evidence for a model: validation chose it, test judges it.

    Test is read once, after the search; None where there was none.
    """

    validation: Evaluation
    test: Evaluation | None = None
    n_train_examples: Annotated[int, Field(ge=0)] | None = None


class OnnxReport(Frozen):
    """How model.onnx compares with torch on real inputs.

    A difference is one of logits or features, as a share of the largest of them, or of 1 where
    all are smaller.
    """

    opset: int
    tolerance: float = Field(description="largest difference that was allowed")
    max_difference: float = Field(description="largest difference that was found")


class TrunkReport(Frozen):
    """The frozen part of a model, which bundles of equal digests have in common.

    `tensors` are the names, in model.onnx, of what it hands on.
    """

    digest: Sha256 = Field(description="of its weights, architecture, cut and input")
    cut: Cut = Field(description="the stage that it ends with, or `features` for all of them")
    tensors: tuple[str, ...]


class BundleManifest(Frozen):
    """All that is needed to rebuild a model and to read its answers, without opening its weights.

    `backbone.weights` is always `none`: a bundle fills the model from its own file and downloads
    nothing. A text encoder's architecture and tokenizer are in the files config.json and
    tokenizer.json, a CLIP's architecture in open_clip_config.json; a zero-shot bundle has its text
    tower too, in text.safetensors, and so can answer for other labels. The width of the head's
    input follows from backbone and `strategy.pooling`, that of its output from `task.outputs`.
    """

    format: Literal["transfer-orchestrator-bundle"] = FORMAT
    format_version: int = FORMAT_VERSION
    task: TaskSpec
    input: Contract
    backbone: BackboneSpec
    strategy: Strategy
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="logits are divided by it (Guo et al., ICML 2017, section 4.2)"
    )
    threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="probability from which a label of a multi-label task is answered"
    )
    scores: Scores
    experiment: Sha256 = Field(description="digest of the Experiment")
    versions: dict[str, str] = Field(description="of the libraries that wrote the bundle")
    created_at: str = Field(description="ISO 8601 with a time zone")
    onnx: OnnxReport | None = Field(None, description="of model.onnx, where there is one")
    without_onnx: str | None = Field(None, description="why there is no model.onnx")
    trunk: TrunkReport | None = Field(None, description="where model.onnx can be cut")
    latency: LatencyCurve | None = Field(None, description="measured where it was written")
    files: dict[FileName, FileEntry]
    digest: Sha256 = Field(description="SHA-256 of the canonical JSON of all other fields")

    @field_validator("backbone")
    @classmethod
    def _downloads_nothing(cls, value: BackboneSpec) -> BackboneSpec:
        if value.weights != "none":
            raise ValueError(f"weights {value.weights!r} would be fetched. Use 'none'")
        return value

    @field_validator("created_at")
    @classmethod
    def _has_time_zone(cls, value: str) -> str:
        if datetime.fromisoformat(value).tzinfo is None:
            raise ValueError(f"{value!r} has no time zone. Use UTC, such as 2026-01-31T12:00:00Z")
        return value

    @field_validator("files")
    @classmethod
    def _is_complete(cls, value: dict[FileName, FileEntry]) -> dict[FileName, FileEntry]:
        if missing := [name for name in REQUIRED_FILES if name not in value]:
            raise ValueError(f"{', '.join(missing)} not named. A bundle has {REQUIRED_FILES}")
        return value

    @property
    def trunk_key(self) -> tuple[str, bool] | None:
        """Equal for bundles that one trunk answers for: it computes the same, of inputs alike.

        A question comes with its context, and with a type for each token: a trunk that was cut from
        a model of single texts takes none.
        """
        if self.trunk is None:
            return None
        return self.trunk.digest, self.task.kind == "question-answering"

    def same_content(self, other: BundleManifest) -> bool:
        """Whether the two differ in nothing but when they were written and what was measured."""
        written: dict[str, Any] = {
            "created_at": True,
            "digest": True,
            "onnx": {"max_difference": True},
            "latency": True,
        }
        return self.model_dump(exclude=written) == other.model_dump(exclude=written)


def sealed(content: dict[str, Any]) -> BundleManifest:
    """The manifest of `content`, with its digest added.

    Args:
        content: All fields but `digest`, as JSON types or specs; those with a default may be
            left out.

    Raises:
        BundleError: If a value is not allowed.
    """
    draft = _validated({**content, "digest": "0" * 64})
    return draft.model_copy(update={"digest": _digest(draft.to_json())})


def render(value: dict[str, Any]) -> bytes:
    """The one way in which JSON files of a bundle are written."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def parse_manifest(raw: bytes) -> BundleManifest:
    """The manifest that the bytes of a bundle.json hold, once they are known to be as written.

    Raises:
        BundleError: If they are of no bundle, of a newer format, or name what is not allowed.
        IntegrityError: If a byte of them was changed.
    """
    try:
        content = json.loads(raw)
        unchanged = raw == render(content)
    except (ValueError, RecursionError) as err:
        raise IntegrityError(f"{MANIFEST}: not the JSON that was written ({err})") from err
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f"{MANIFEST}: `format` is not {FORMAT!r}, so this is no bundle")
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST}: format_version {version} is newer than {FORMAT_VERSION}, the newest this "
            "version reads. Update transfer-orchestrator"
        )
    if not unchanged or content.get("digest") != _digest(content):
        raise IntegrityError(
            f"{MANIFEST}: its content does not have the digest that it states. It was edited or "
            "damaged; export the bundle again or fetch it from where it was written"
        )
    return _validated(content)


def _digest(content: dict[str, Any]) -> str:
    return digest_of({key: value for key, value in content.items() if key != "digest"})


def _validated(content: dict[str, Any]) -> BundleManifest:
    try:
        return BundleManifest.model_validate(content)
    except ValidationError as err:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in err.errors()
        )
        raise BundleError(f"{MANIFEST}: {faults}") from err
