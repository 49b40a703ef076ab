"""Our loop takes the steps of transformers' Trainer where both are given the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch.utils.data import DataLoader

from orchestrator.data.batches import Indices
from orchestrator.data.examples import Examples
from orchestrator.data.inputs import training_batches
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.strategy import Full
from orchestrator.spec.text_encoders import encoder_tokenizer
from orchestrator.spec.vetted import with_defaults
from orchestrator.tasks.losses import Loss
from orchestrator.training.phase_run import PhaseRun
from orchestrator.training.phases import compile_phases
from orchestrator.training.trial import build_network
from orchestrator.training.workers import Workers
from tests.orchestrator.training.library_trainer import (
    MeanClassifier,
    OnOurCourse,
    padding_collator,
    settings_of,
    trainer_rows,
)
from tests.orchestrator.training.small_texts import text_experiment_of
from tests.orchestrator.training.small_trials import CPU, MakeIO

LR, BATCH, EPOCHS = 1e-3, 8, 3


class InTurn:
    """Batches of rows, another list of them each time they are asked for."""

    def __init__(self, epochs: list[list[Indices]]) -> None:
        self._epochs, self._n = iter(epochs), len(epochs[0])

    def __iter__(self) -> Iterator[list[int]]:
        return iter([batch.tolist() for batch in next(self._epochs)])

    def __len__(self) -> int:
        return self._n


def test_every_epoch_has_the_loss_of_the_trainers(
    texts: Examples, plain_encoder: BackboneSpec, make_text_io: MakeIO, tmp_path: Path
) -> None:
    values = {"epochs": EPOCHS, "batch_size": BATCH, "backbone_lr": LR, "head_lr": LR}
    values |= {"stage_decay": 1.0, "warm_up_epochs": 0}
    strategy = Full.model_validate(with_defaults("full", "text", values))
    experiment = text_experiment_of(strategy, texts, plain_encoder)
    (phase,) = compile_phases(strategy, 3)

    network = build_network(experiment, make_text_io(experiment, "ours"))
    loss = Loss(experiment.task, strategy, class_weights=None)
    io, alone = make_text_io(experiment, "ours"), Workers(rank=0, world_size=1, device=CPU)
    run = PhaseRun(experiment, phase, network, loss, io, alone)
    ours = [run.train(epoch, EPOCHS)[0] for epoch in range(1, EPOCHS + 1)]

    tokenizer = encoder_tokenizer(plain_encoder)
    rows = trainer_rows(texts, tokenizer, size=experiment.input.size)
    batches = [
        training_batches(texts, contract=experiment.input, batch_size=BATCH, seed=0, epoch=epoch)
        for epoch in range(1, EPOCHS + 1)
    ]

    class OnOurBatches(OnOurCourse):
        def get_train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(
                rows,  # type: ignore[arg-type]
                batch_sampler=InTurn(batches),
                collate_fn=self.data_collator,
            )

    again = build_network(experiment, make_text_io(experiment, "theirs"))
    encoder = transformers.AutoModel.from_pretrained(plain_encoder.folder)
    trainer = OnOurBatches(
        phase,
        model=MeanClassifier(encoder, again.head),
        args=settings_of(
            phase, tmp_path, batch_size=BATCH, lr=LR, logging_strategy="steps", logging_steps=1
        ),
        train_dataset=rows,
        data_collator=padding_collator(tokenizer, size=experiment.input.size),
    )
    trainer.train()
    steps = iter(trainer.losses)
    theirs = [
        sum(len(batch) * next(steps) for batch in of_epoch) / sum(map(len, of_epoch))
        for of_epoch in batches
    ]
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0] - 0.1
    assert not list(steps)
