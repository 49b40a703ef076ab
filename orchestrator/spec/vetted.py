"""What is vetted by kind of input: defaults of texts and adapters, and ranges that usually work.

Sources: the transformer column of Howard & Ruder (ULMFiT, ACL 2018) and Devlin et al. (BERT, NAACL
2019) for rates, warm-up and epochs; layer-wise decay as in Clark et al. (ELECTRA, ICLR 2020);
adapters as for RoBERTa in Hu et al. (LoRA, ICLR 2022), table 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.spec.parts import Modality, TaskKind, by_position, modality_of
from orchestrator.spec.strategy import LORA_SHAPE, STRATEGIES, Adapter

# Parameters that one kind of input alone has.
ONLY_FOR: dict[str, Modality] = {
    "augment": "image",
    "mixup": "image",
    "cutmix": "image",
    "image_size": "image",
    "crop_fraction": "image",
    "batch_norm": "image",
    "templates": "image",
    "descriptions": "image",
    "wise_ft": "image",
    "max_length": "text",
    "overlap": "text",
}
# Parameters of text tasks that answer for every token, and of those that answer once for a text.
BY_POSITION = frozenset({"overlap"})
ONCE_A_TEXT = frozenset({"pooling", "views", "predict_views"})

# Where the vetted default for texts is another: the facts table's transformer column.
_TEXT: dict[str, Any] = {
    "pooling": "mean",
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "schedule": "linear-warm-up-cosine",
    "lr_warm_up": 0.1,
    "clip_norm": 1.0,
    "label_smoothing": 0.0,
    "augment": "none",
}
_TEXT_TUNING: dict[str, Any] = {
    **_TEXT,
    "batch_size": 16,
    "epochs": 3,
    "backbone_lr": 2e-5,
    "head_lr": 5e-5,
    "stage_decay": 0.9,
    "thirds": None,
}
TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "zero-shot": {},
    "feature-extraction": {"pooling": "mean"},
    "partial": _TEXT_TUNING,
    "full": _TEXT_TUNING,
    "scratch": {**_TEXT, "batch_size": 16, "lr": 1e-4, "epochs": 10},
}


# Where it is another for adapters, whatever the input: one rate for all of them and the head.
LORA_DEFAULTS: dict[str, Any] = {
    **LORA_SHAPE,
    "adapter": "lora",
    "backbone_lr": 4e-4,
    "head_lr": 4e-4,
    "stage_decay": None,
}


def belongs_to(parameter: str, task: TaskKind) -> bool:
    """Whether a parameter means anything for a task."""
    owner = ONLY_FOR.get(parameter)
    if owner is not None and owner != modality_of(task):
        return False
    return parameter not in (ONCE_A_TEXT if by_position(task) else BY_POSITION)


def defaults_for(strategy: str, modality: Modality, adapter: Adapter = "none") -> dict[str, Any]:
    """The vetted default of every parameter of a strategy, for one kind of input."""
    fields = STRATEGIES[strategy].model_fields
    defaults = {name: field.default for name, field in fields.items() if name != "strategy"}
    return defaults | _instead(strategy, modality, adapter)


def with_defaults(strategy: str, modality: Modality, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with the defaults that it has instead of the class's own."""
    defaults = _instead(strategy, modality, given.get("adapter", "none"))
    if given.get("thirds"):
        defaults["stage_decay"] = None  # the one that is given replaces the other
    return {**defaults, **given}


def _instead(strategy: str, modality: Modality, adapter: Adapter) -> dict[str, Any]:
    """The defaults that are not the class's own."""
    of_input = TEXT_DEFAULTS[strategy] if modality == "text" else {}
    return {**of_input, **(LORA_DEFAULTS if adapter == "lora" else {})}


# The ranges of the facts table: (low, high). A value outside is allowed and noted.
TEXT_RANGES: dict[str, tuple[float, float]] = {
    "head_lr": (2e-5, 1e-3),
    "backbone_lr": (2e-5, 5e-5),
    "weight_decay": (1e-2, 1e-2),
    "epochs": (2, 5),
    "batch_size": (16, 32),
    "clip_norm": (1.0, 1.0),
}
USUAL_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "zero-shot": {},
    "feature-extraction": {
        "head_lr": (1e-3, 3e-3),
        "weight_decay": (1e-4, 1e-2),
        "epochs": (10, 20),
        "batch_size": (32, 128),
        "label_smoothing": (0.0, 0.1),
    },
    "partial": {
        "head_lr": (3e-4, 1e-3),
        "backbone_lr": (1e-5, 1e-4),
        "weight_decay": (1e-2, 1e-2),
        "epochs": (15, 30),
        "batch_size": (32, 64),
        "clip_norm": (0.0, 1.0),
        "label_smoothing": (0.1, 0.1),
    },
    "full": {
        "head_lr": (1e-4, 3e-4),
        "backbone_lr": (1e-5, 1e-4),
        "weight_decay": (1e-2, 1e-2),
        "epochs": (20, 50),
        "batch_size": (32, 64),
        "clip_norm": (1.0, 1.0),
        "label_smoothing": (0.05, 0.1),
    },
    "scratch": {},
}


LORA_RANGES: dict[str, tuple[float, float]] = {
    "head_lr": (2e-4, 5e-4),
    "backbone_lr": (2e-4, 5e-4),
    "lora_rank": (4, 64),
}


def usual_ranges(
    strategy: str, modality: Modality, adapter: Adapter = "none"
) -> dict[str, tuple[float, float]]:
    """What usually works for a strategy: (low, high) by parameter."""
    if modality == "image":
        usual = USUAL_RANGES[strategy]
    else:
        usual = TEXT_RANGES if strategy in ("partial", "full") else {}
    return {**usual, **(LORA_RANGES if adapter == "lora" else {})}
