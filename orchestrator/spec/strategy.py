"""Strategies as data: how far pretrained weights may move, and when.

One class a strategy; its fields are the parameters that a search block of that strategy may name,
and their defaults are the vetted ones for images: trial 0 of every block. What is another for texts
or adapters is in `vetted.py`; the two are the only home of defaults.

Sources: two-phase rule and rates, Howard & Ruder (ULMFiT, ACL 2018) and fast.ai's rule of three;
warm-up of the head before the trunk moves, Kumar et al. (LP-FT, ICLR 2022); low-rank adapters, Hu
et al. (LoRA, ICLR 2022).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.spec.frozen import Frozen
from orchestrator.spec.prompts import Descriptions, Templates

Rate = Annotated[float, Field(gt=0, le=10)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "step", "cosine", "onecycle", "linear-warm-up-cosine"]
Augment = Literal["none", "light", "standard", "trivial"]
BatchNorm = Literal["frozen", "adapt"]
Adapter = Literal["none", "lora"]
WarmUp = Literal["bank", "own"]
Pooling = Literal["last", "mean", "multi-scale", "none"]
Views = Literal["fresh", 1, 2, 4, 8]
StoredPrecision = Literal["fp32", "fp16"]


class StrategyParams(Frozen):
    """What every strategy can set: head, optimiser, schedule, loss, augmentation, input.

    `only` names the parameters that a strategy takes, where it takes but a few.
    """

    only: ClassVar[frozenset[str] | None] = None

    epochs: Epochs = Field(10, description="epochs after the warm-up")
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = Field(
        32, description="examples a step, over all workers and accumulation steps"
    )
    accumulate: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="a step's batch is computed in this many parts"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="seeds every random choice")

    head: Literal["linear", "mlp", "text"] = Field(
        "linear",
        description="one linear layer; hidden layer + ReLU + dropout + linear; or, of a CLIP, one "
        "linear layer over features of length one that starts from what the labels' texts say",
    )
    templates: Templates = Field(
        "default", description="sentences that a text head's labels go into: a set, or a list"
    )
    descriptions: Descriptions | None = Field(
        None,
        description="what labels mean, for a text head: a labels file, or label: phrase, "
        "[phrases] or {prompts: [whole sentences]}",
    )
    hidden: Annotated[int, Field(ge=1, le=65_536)] = Field(
        256, description="width of an mlp head's hidden layer"
    )
    dropout: Fraction = Field(0.0, description="dropout before the last layer")
    feature_dropout: Fraction = Field(
        0.0, description="dropout of the features that an mlp head reads"
    )
    pooling: Pooling = Field(
        "last",
        description="features of the last stage as the library's own classifier reads them, their "
        "mean over positions, or mean and max of every stage; none for tasks that answer for every "
        "token",
    )

    optimizer: Optimizer = Field("adamw", description="sgd (momentum 0.9, Nesterov), adam or adamw")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(
        1e-2, description="decay of weights; norms and biases are exempt"
    )
    schedule: Schedule = Field("cosine", description="course of the rates over a phase's steps")
    lr_warm_up: Fraction = Field(
        0.05, description="share of a phase over which linear-warm-up-cosine raises the rates"
    )
    clip_norm: Annotated[float, Field(ge=0)] = Field(
        0.0, description="largest gradient norm a step; 0 for no clipping"
    )

    ema_decay: Fraction = Field(
        0.0, description="validate and keep a moving average of the weights; 0 for none"
    )

    loss: Literal["cross-entropy", "focal"] = Field(
        "cross-entropy", description="focal down-weights easy examples"
    )
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = Field(
        2.0, description="how strongly focal loss down-weights easy examples"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced weighs classes by inverse frequency"
    )
    label_smoothing: Fraction = Field(0.0, description="share of the target spread over classes")

    augment: Augment = Field("none", description="transforms of training images")
    mixup: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="mixup's Beta parameter; 0 for none"
    )
    cutmix: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="cutmix's Beta parameter; 0 for none"
    )

    views: Views = Field(
        "fresh",
        description="what epochs see of an image: a fresh draw of augment each time, or one of so "
        "many fixed draws, whose frozen outputs are stored; without augment, the image itself, "
        "or it mirrored, turned by half, by quarters; of a long text, one of so many windows",
    )
    predict_views: Literal[1, 2, 4, 8] = Field(
        1,
        description="views of an input whose logits are averaged in validation, test and "
        "serving; each costs a forward pass",
    )

    stored_precision: StoredPrecision = Field(
        "fp16", description="of stored activations; stored features are fp32"
    )

    image_size: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        None, description="pixels a side; the backbone's own when not given"
    )
    crop_fraction: Annotated[float, Field(gt=0.1, le=1.0)] | None = Field(
        None, description="share of the shorter side that evaluation keeps; the backbone's own"
    )
    max_length: Annotated[int, Field(ge=8, le=65_536)] | None = Field(
        None, description="tokens of the longest text; 256, or the encoder's own most, if less"
    )
    overlap: Annotated[int, Field(ge=0, le=65_536)] | None = Field(
        None,
        description="tokens that neighbouring windows of a long text share; a quarter of "
        "max_length when not given",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on GPUs that have it, else fp32"
    )

    @property
    def n_views(self) -> int:
        """How many views of an image training draws from, where they are fixed."""
        return 1 if self.views == "fresh" else self.views

    @property
    def inputs_recur(self) -> bool:
        """Whether every epoch draws from the same few views."""
        drawn_anew = self.views == "fresh" and self.augment != "none"
        return not (self.mixup or self.cutmix or drawn_anew)

    def stored_views(self, augment: Augment) -> list[tuple[int, Augment]]:
        """The views (number, augment) of an image that a trial may read from the store.

        Args:
            augment: Of the training views; those that the outputs are averaged over have none.
        """
        training = [(number, augment) for number in range(self.n_views)]
        judged: list[tuple[int, Augment]] = [(n, "none") for n in range(self.predict_views)]
        return list(dict.fromkeys([*training, *judged]))

    @model_validator(mode="after")
    def _texts_meet_images_at_the_output(self) -> StrategyParams:
        if self.head == "text" and self.pooling != "last":
            raise ValueError(
                f"head: text reads pooling: last, not {self.pooling}. Use one or the other"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> StrategyParams:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate {self.accumulate} is more than batch_size {self.batch_size}. "
                "Use at most one part an example"
            )
        return self


class ZeroShot(StrategyParams):
    """E: nothing is trained; a CLIP's texts are the head."""

    only: ClassVar[frozenset[str] | None] = frozenset(
        {"templates", "descriptions", "predict_views", "image_size", "crop_fraction"}
    )

    strategy: Literal["zero-shot"] = "zero-shot"
    head: Literal["text"] = "text"
    epochs: Annotated[int, Field(ge=0, le=0)] = 0


class FeatureExtraction(StrategyParams):
    """A: the backbone is frozen, only the head learns."""

    strategy: Literal["feature-extraction"] = "feature-extraction"
    head_lr: Rate = Field(1e-3, description="rate of the head")
    epochs: Epochs = Field(10, description="epochs")
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = Field(64, description="examples a step")
    optimizer: Optimizer = Field("adam", description="sgd, adam or adamw")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(1e-4, description="decay of weights")


class FineTuning(StrategyParams):
    """What partial and full fine-tuning share: a head warm-up, then rates that differ by depth."""

    warm_up: WarmUp = Field(
        "bank",
        description="start from the best head that the sweep has for this backbone, or train one "
        "of the trial's own first",
    )
    warm_up_epochs: Annotated[int, Field(ge=0, le=10_000)] = Field(
        5,
        description="head-only epochs before the backbone moves, where the sweep has no head for "
        "it yet; 0 to start from a new head",
    )
    warm_up_lr: Rate = Field(1e-3, description="rate of the head in the warm-up")
    backbone_lr: Rate = Field(1e-4, description="rate of the last stage")
    stage_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="factor from each stage to the one before it"
    )
    thirds: tuple[Rate, Rate, Rate] | None = Field(
        None, description="factors on backbone_lr for the early, middle and late third"
    )
    batch_norm: BatchNorm = Field(
        "frozen", description="whether statistics of unfrozen stages follow the new data"
    )
    label_smoothing: Fraction = Field(0.1, description="share of the target spread over classes")
    augment: Augment = Field("standard", description="transforms of training images")
    wise_ft: bool = Field(
        False,
        description="in the end take the weights between zero-shot and fine-tuned that validate "
        "best (text heads; Wortsman et al., CVPR 2022)",
    )

    @model_validator(mode="after")
    def _between_two_ends(self) -> FineTuning:
        if self.wise_ft and self.head != "text":
            raise ValueError(
                f"wise_ft goes back towards zero-shot, which a {self.head} head has not. Use head: "
                "text, or leave wise_ft out"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_replaces_the_other(cls, data: object) -> object:
        """The one that is given clears the other's default, in what is stored too."""
        if not isinstance(data, dict):
            return data
        if data.get("thirds") and "stage_decay" not in data:
            return {**data, "stage_decay": None}
        if data.get("stage_decay") and "thirds" not in data:
            return {**data, "thirds": None}
        return data

    @model_validator(mode="after")
    def _one_discrimination(self) -> FineTuning:
        if self.stage_decay is not None and self.thirds is not None:
            raise ValueError("stage_decay and thirds both set the rates of earlier stages. Use one")
        return self

    def stage_lr(self, stage: int, n_stages: int) -> float:
        """The base rate of a stage.

        Args:
            stage: 0 for the stem, 1 … n_stages for the stages.
            n_stages: How many stages the backbone has, the stem not counted.
        """
        if self.stage_decay is not None:
            return float(self.backbone_lr * self.stage_decay ** (n_stages - stage))
        if self.thirds is not None:
            return self.backbone_lr * self.thirds[min(2, 3 * stage // (n_stages + 1))]
        return self.backbone_lr


# The shape for RoBERTa base in Hu et al. (LoRA, ICLR 2022), table 9.
LORA_SHAPE: dict[str, Any] = {"lora_rank": 8, "lora_alpha": 8, "lora_dropout": 0.0}


class PartialTuning(FineTuning):
    """A head warm-up, then the last `unfreeze` stages with rates that rise towards the head."""

    unfreeze: Annotated[int, Field(ge=1)] = Field(2, description="stages to train, from the output")
    head_lr: Rate = Field(3e-4, description="rate of the head after the warm-up")
    stage_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.5, description="factor from each stage to the one before it"
    )
    epochs: Epochs = Field(15, description="epochs after the warm-up")
    adapter: Adapter = Field(
        "none",
        description="what of these stages learns: all of it, or low-rank adapters beside the query "
        "and value projections of their attention, which are merged into them in the end",
    )
    lora_rank: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="rank of an adapter; only with adapter: lora"
    )
    lora_alpha: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="an adapter's output counts lora_alpha / lora_rank times; likewise"
    )
    lora_dropout: Fraction | None = Field(
        None, description="dropout of what an adapter reads; likewise"
    )

    @model_validator(mode="before")
    @classmethod
    def _adapters_have_a_shape(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("adapter") == "lora":
            given = {name: value for name, value in data.items() if value is not None}
            return {**data, **LORA_SHAPE, **given}
        return data

    @model_validator(mode="after")
    def _adapters_only_where_asked_for(self) -> PartialTuning:
        if self.adapter == "none":
            for name in LORA_SHAPE:
                if (value := getattr(self, name)) is not None:
                    raise ValueError(
                        f"{name} {value} is for adapter: lora. Leave it out, or give adapter: lora "
                        "a block of its own"
                    )
        elif self.batch_norm == "adapt":
            raise ValueError(
                "batch_norm: adapt moves what adapter: lora leaves as pretrained. Use frozen"
            )
        return self


class Partial(PartialTuning):
    """B: the last stages of a backbone with the weights that it comes with."""

    strategy: Literal["partial"] = "partial"


class FullTuning(FineTuning):
    """A head warm-up, then everything, early stages slowest."""

    head_lr: Rate = Field(1e-3, description="rate of the head after the warm-up")
    thirds: tuple[Rate, Rate, Rate] | None = Field(
        (0.01, 0.1, 1.0),
        description="factors on backbone_lr for the early, middle and late third",
    )
    schedule: Schedule = Field("onecycle", description="course of the rates over a phase's steps")
    clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm")
    epochs: Epochs = Field(20, description="epochs after the warm-up")


class Full(FullTuning):
    """C: all of a backbone with the weights that it comes with."""

    strategy: Literal["full"] = "full"


class AdaptedPartial(PartialTuning):
    """D, then B: the last stages of a backbone that was pretrained on the domain first."""

    strategy: Literal["domain-adaptive"] = "domain-adaptive"
    then: Literal["partial"] = Field("partial", description="how it is fine-tuned")


class AdaptedFull(FullTuning):
    """D, then C: all of a backbone that was pretrained on the domain first."""

    strategy: Literal["domain-adaptive"] = "domain-adaptive"
    then: Literal["full"] = Field("full", description="how it is fine-tuned")


class Scratch(StrategyParams):
    """The baseline that gains are quoted against: the same architecture, randomly initialised."""

    strategy: Literal["scratch"] = "scratch"
    lr: Rate = Field(1e-3, description="rate of everything")
    epochs: Epochs = Field(20, description="epochs")
    schedule: Schedule = Field("linear-warm-up-cosine", description="course of the rates")
    clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm")
    label_smoothing: Fraction = Field(0.1, description="share of the target spread over classes")
    augment: Augment = Field("standard", description="transforms of training images")


Adapted = Annotated[AdaptedPartial | AdaptedFull, Field(discriminator="then")]
Strategy = Annotated[
    ZeroShot | FeatureExtraction | Partial | Full | Adapted | Scratch,
    Field(discriminator="strategy"),
]
Then = Literal["partial", "full"]
DOMAIN_ADAPTIVE = "domain-adaptive"

# The classes whose fields a block sets; a domain-adaptive block sets those of what comes then.
STRATEGIES: dict[str, type[StrategyParams]] = {
    "zero-shot": ZeroShot,
    "feature-extraction": FeatureExtraction,
    "partial": Partial,
    "full": Full,
    "scratch": Scratch,
}
STRATEGY_NAMES: tuple[str, ...] = (*STRATEGIES, DOMAIN_ADAPTIVE)
