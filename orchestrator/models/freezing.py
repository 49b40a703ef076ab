"""Which stages may move: a frozen stage's parameters and statistics stay bit-equal.

Leaving a frozen trunk in train mode is the classic silent failure of transfer learning: its batch
norms drift. So the backbone itself keeps frozen stages in eval mode (`Backbone.train`).
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.models.backbone import Backbone, batch_norms
from orchestrator.spec.strategy import BatchNorm


def set_trainable(
    backbone: Backbone, stages: Iterable[int], *, batch_norm: BatchNorm = "frozen"
) -> None:
    """Makes exactly these stages trainable and freezes the others, gradients included.

    In a backbone with adapters it is those of the stages that train, and nothing else of them.

    The mode (train or eval) of the backbone stays; in train mode, dropout and stochastic depth of
    trainable stages are active.

    Args:
        backbone: Changed in place.
        stages: 0 for the stem, 1 … S; see `last_stages`.
        batch_norm: Whether running statistics of trainable stages follow the data (`adapt`) or
            not (`frozen`); their scale and shift train either way.
    """
    chosen = frozenset(stages)
    known = frozenset(range(backbone.n_stages + 1))
    assert chosen <= known, f"stages {sorted(chosen - known)} are not among 0–{backbone.n_stages}"
    backbone.trainable = chosen
    backbone.batch_norm_adapts = batch_norm == "adapt"
    for stage in known:
        movable = set(backbone.movable_parameters_of(stage)) if stage in chosen else set()
        for parameter in backbone.parameters_of(stage):
            parameter.requires_grad_(parameter in movable)
            if parameter not in movable:
                parameter.grad = None
    backbone.train(backbone.training)


def last_stages(backbone: Backbone, unfreeze: int) -> range:
    """The last `unfreeze` stages; 0 for none. The stem is not among them, whatever the number."""
    return range(backbone.n_stages - unfreeze + 1, backbone.n_stages + 1)


def assert_frozen(backbone: Backbone) -> None:
    """Asserts that nothing frozen can move; cheap enough for every epoch.

    Raises:
        AssertionError: A frozen stage has a module in train mode, a parameter that requires or has
            a gradient, what adapters stand beside has one, or a batch norm follows the data though
            statistics are frozen.
    """
    for stage in set(range(backbone.n_stages + 1)) - backbone.trainable:
        for module in backbone.modules_of(stage):
            training = [name for name, child in module.named_modules() if child.training]
            assert not training, f"frozen stage {stage} is in train mode: {training[:3]}"
    for stage in range(backbone.n_stages + 1):
        movable = set(backbone.movable_parameters_of(stage) if stage in backbone.trainable else ())
        for parameter in set(backbone.parameters_of(stage)) - movable:
            assert not parameter.requires_grad, f"frozen: stage {stage} requires a gradient"
            assert parameter.grad is None, f"frozen: stage {stage} has a gradient"
    if not backbone.batch_norm_adapts:
        drifting = [norm for norm in batch_norms(backbone) if norm.training]
        assert not drifting, f"{len(drifting)} batch norms are in train mode"
