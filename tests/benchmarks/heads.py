"""P2: 64 heads trained as one bank against one head."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import torch

from orchestrator.features.store import FeatureStore
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.strategy import FeatureExtraction
from orchestrator.training.bank import run_bank
from orchestrator.training.trial import TrialResult, run_trial
from tests.benchmarks.harness import Measured, paired
from tests.orchestrator.training.small_trials import MakeIO, MemoryIO, experiment_of, write_examples

N_IMAGES, N_HEADS, EPOCHS = 2048, 64, 10


def p2(folder: Path) -> Measured:
    """The time of 64 heads, one epoch like the other, as a multiple of one head's.

    Both are linear heads on 1,024 features under Adam; the 64 differ in rate and weight decay. The
    metrics of head 0 in the bank and alone are beside the ratio.
    """
    torch.set_num_threads(1)
    examples = write_examples(folder / "data", n_train=N_IMAGES, n_validation=N_IMAGES // 8)
    make_io = MakeIO(examples, FeatureStore(folder / "features"), folder / "trials")
    rates = itertools.product([1e-3 * 1.2**i for i in range(8)], [1e-5 * 3**i for i in range(8)])
    heads = [
        experiment_of(FeatureExtraction(epochs=EPOCHS, head_lr=rate, weight_decay=decay), examples)
        for rate, decay in rates
    ]
    assert len(heads) == N_HEADS
    bank: list[TrialResult] = []

    def all_heads() -> None:
        bank[:] = trained(heads, make_io(heads[0]))

    def one_head() -> None:
        trained(heads[:1], make_io(heads[0]))

    ratio, ours, theirs = paired(all_heads, one_head, pairs=5)
    alone = run_trial(heads[0], make_io(heads[0], "alone"))
    return Measured(
        id="P2",
        what=f"{N_HEADS} heads in one bank against a bank of one",
        value=ratio,
        goal="≤ 3×",
        beside={
            "seconds_of_all": ours,
            "seconds_of_one": theirs,
            "log_loss_in_the_bank": bank[0].validation["log_loss"],
            "log_loss_alone": alone.validation["log_loss"],
        },
    )


def trained(heads: list[Experiment], io: MemoryIO) -> list[TrialResult]:
    """The heads' results, their checkpoints in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as scratch:
        return run_bank(
            heads,
            io,
            checkpoints=lambda head: Path(scratch) / head.id,
            on_epoch=lambda *_: None,
            stopped_by=lambda: None,
        )
