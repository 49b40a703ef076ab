"""Domain-adaptive pretraining as data: what a backbone goes on learning from before fine-tuning.

Texts are learnt by masked-language modelling (Devlin et al., NAACL 2019; continued on a domain's
own texts: Gururangan et al., ACL 2020), images by SimSiam (Chen & He, CVPR 2021). Values are
constants: a pretraining is run once and shared, never searched.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.spec.data import SplitFraction
from orchestrator.spec.frozen import Frozen, digest_of
from orchestrator.spec.parts import Modality
from orchestrator.spec.strategy import Epochs, Fraction, Rate

DIGITS = 16  # of the digest that names a pretraining's folder
PRETRAINING = "pretraining"  # the role of a parent whose adapted weights an experiment starts from


class CorpusSpec(Frozen):
    """Unlabelled documents: texts or images.

    A location is a file, a folder, a glob, a CSV, Parquet or JSONL table, a folder written by
    `datasets.save_to_disk`, `hub:owner/name`, or an fsspec URI to a file.
    """

    files: tuple[str, ...] = Field(min_length=1)
    column: str | None = Field(
        None, description="column of the tables; found by name when not given"
    )


class PretrainingParams(Frozen):
    """What both kinds of pretraining can set."""

    corpus: CorpusSpec | None = Field(
        None, description="what to learn from; the training examples of the sweep when not given"
    )
    epochs: Epochs = Field(3, description="passes over the corpus")
    lr: Rate = Field(5e-5, description="rate at its peak")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(
        1e-2, description="decay of weights; norms and biases are exempt"
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = Field(32, description="rows a step")
    accumulate: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="a step's batch is computed in this many parts"
    )
    schedule: Literal["cosine", "linear"] = Field(
        "cosine", description="how the rate falls after its warm-up"
    )
    lr_warm_up: Fraction = Field(0.06, description="share of all steps in which the rate rises")
    clip_norm: Annotated[float, Field(ge=0)] = Field(
        1.0, description="largest gradient norm a step; 0 for no clipping"
    )
    held_out: SplitFraction = Field(
        0.05, description="share of the documents that are never learnt, only measured on"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="seeds every random choice")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on GPUs that have it, else fp32"
    )

    @model_validator(mode="after")
    def _batch_divides(self) -> PretrainingParams:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate {self.accumulate} is more than batch_size {self.batch_size}. "
                "Use at most one part a row"
            )
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """All but where the corpus lies, as plain JSON types."""
        return {name: value for name, value in self.to_json().items() if name != "corpus"}


class MaskedLanguage(PretrainingParams):
    """Continued masked-language modelling of a text encoder."""

    method: Literal["masked-language"] = "masked-language"
    max_length: Annotated[int, Field(ge=8, le=65_536)] | None = Field(
        None, description="tokens of a row; 512, or the encoder's own most, if less"
    )
    mask_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="share of the tokens to be told from the others"
    )


class SimSiam(PretrainingParams):
    """Continued self-supervised training of an image backbone: two views of an image agree."""

    method: Literal["simsiam"] = "simsiam"
    epochs: Epochs = Field(20, description="passes over the corpus")
    lr: Rate = Field(1e-2, description="rate at its peak, of SGD with momentum 0.9")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(
        1e-4, description="decay of weights; norms and biases are exempt"
    )
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = Field(64, description="images a step")
    clip_norm: Annotated[float, Field(ge=0)] = Field(
        0.0, description="largest gradient norm a step; 0 for no clipping"
    )
    image_size: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        None, description="pixels a side; the backbone's own when not given"
    )
    crop_scale: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="least share of an image's area that a view shows"
    )


Pretraining = Annotated[MaskedLanguage | SimSiam, Field(discriminator="method")]

METHODS: dict[Modality, type[MaskedLanguage] | type[SimSiam]] = {
    "text": MaskedLanguage,
    "image": SimSiam,
}


def pretraining_digest(
    pretraining: MaskedLanguage | SimSiam,
    *,
    backbone: str,
    weights_digest: str,
    tokenizer: str | None,
    corpus_digest: str,
) -> str:
    """SHA-256 of all that decides the adapted weights; of no path and no worker.

    Args:
        pretraining: Its settings.
        backbone: The name of the backbone that is adapted.
        weights_digest: Of its weights before.
        tokenizer: The digest of the one that reads for it, where it reads texts.
        corpus_digest: Of the documents.
    """
    return digest_of(
        {
            "backbone": backbone,
            "weights": weights_digest,
            **({"tokenizer": tokenizer} if tokenizer else {}),
            "corpus": corpus_digest,
            "settings": pretraining.settings,
        }
    )
