"""A Strategy compiles to Phases: spans of epochs with a constant trainable set and base rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never

from orchestrator.spec.strategy import (
    Augment,
    BatchNorm,
    FeatureExtraction,
    FineTuning,
    FullTuning,
    Optimizer,
    PartialTuning,
    Schedule,
    Scratch,
    Strategy,
    StrategyParams,
    ZeroShot,
)


@dataclass(frozen=True)
class Phase:
    """Epochs during which the same parameters learn.

    With `same_inputs` every epoch draws from the same few views, so that frozen outputs recur. With
    `pools` the head reads features pooled over positions, rather than every position's.
    `stage_lrs` maps each trainable stage (0 is the stem) to its base rate; the others are frozen.
    A phase that reads stored features trains the head alone and sees no image; zero-shot's has no
    epochs.
    """

    name: str
    epochs: int
    head_lr: float
    stage_lrs: dict[int, float]
    optimizer: Optimizer
    weight_decay: float
    schedule: Schedule
    lr_warm_up: float
    clip_norm: float
    batch_norm: BatchNorm
    augment: Augment
    same_inputs: bool
    pools: bool
    mixup: float
    cutmix: float
    ema_decay: float

    @property
    def from_features(self) -> bool:
        """Whether the whole backbone is frozen, and its outputs can be read from the store."""
        return not self.stage_lrs and self.same_inputs

    @property
    def from_pooled(self) -> bool:
        """Whether all that the head reads are stored features, one row an input."""
        return self.from_features and self.pools


WARM_UP: dict[str, Any] = {
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "schedule": "onecycle",
    "lr_warm_up": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "ema_decay": 0.0,
}


def compile_phases(
    strategy: Strategy, n_stages: int, *, handed_over: bool = False
) -> tuple[Phase, ...]:
    """The phases of one experiment, in order.

    Args:
        strategy: Its parameters.
        n_stages: S, the backbone's stages without the stem.
        handed_over: Whether it starts from a trained head, and so has no warm-up.
    """
    match strategy:
        case ZeroShot():
            return (_phase(strategy, "zero-shot", head_lr=0.0, stage_lrs={}),)
        case FeatureExtraction():
            return (_phase(strategy, "head", head_lr=strategy.head_lr, stage_lrs={}),)
        case PartialTuning():
            first = n_stages - strategy.unfreeze + 1
            tuning = _tuning(strategy, range(first, n_stages + 1), n_stages)
            return (tuning,) if handed_over else (*_warm_up(strategy), tuning)
        case FullTuning():
            tuning = _tuning(strategy, range(n_stages + 1), n_stages)
            return (tuning,) if handed_over else (*_warm_up(strategy), tuning)
        case Scratch():
            rates = dict.fromkeys(range(n_stages + 1), strategy.lr)
            return (
                _phase(
                    strategy, "scratch", head_lr=strategy.lr, stage_lrs=rates, batch_norm="adapt"
                ),
            )
        case _:
            assert_never(strategy)


def _warm_up(strategy: FineTuning) -> tuple[Phase, ...]:
    """Head only, on the features as they are: AdamW under OneCycle (the two-phase rule)."""
    if strategy.warm_up_epochs == 0:
        return ()
    return (
        Phase(
            name="warm-up",
            epochs=strategy.warm_up_epochs,
            head_lr=strategy.warm_up_lr,
            stage_lrs={},
            clip_norm=strategy.clip_norm,
            batch_norm="frozen",
            augment=warm_up_augment(strategy),
            same_inputs=True,
            pools=strategy.pooling != "none",
            **WARM_UP,
        ),
    )


def warm_up_augment(strategy: FineTuning) -> Augment:
    """A warm-up sees the fixed draws that fine-tuning sees, or else the images as they are."""
    return "none" if strategy.views == "fresh" else strategy.augment


def _tuning(strategy: PartialTuning | FullTuning, stages: range, n_stages: int) -> Phase:
    return _phase(
        strategy,
        "partial" if isinstance(strategy, PartialTuning) else "full",
        head_lr=strategy.head_lr,
        stage_lrs={stage: strategy.stage_lr(stage, n_stages) for stage in stages},
        batch_norm=strategy.batch_norm,
    )


def _phase(
    params: StrategyParams,
    name: str,
    *,
    head_lr: float,
    stage_lrs: dict[int, float],
    batch_norm: BatchNorm = "frozen",
) -> Phase:
    return Phase(
        name=name,
        epochs=params.epochs,
        head_lr=head_lr,
        stage_lrs=stage_lrs,
        optimizer=params.optimizer,
        weight_decay=params.weight_decay,
        schedule=params.schedule,
        lr_warm_up=params.lr_warm_up,
        clip_norm=params.clip_norm,
        batch_norm=batch_norm,
        augment=params.augment,
        same_inputs=params.inputs_recur,
        pools=params.pooling != "none",
        mixup=params.mixup,
        cutmix=params.cutmix,
        ema_decay=params.ema_decay,
    )
