"""transformers' Trainer as its users would set it up for our task, on the course of our rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from orchestrator.data.examples import Examples
from orchestrator.training.optimization import build_schedule
from orchestrator.training.phases import Phase


class MeanClassifier(nn.Module):
    """What users of the Trainer write for an encoder without a pooler: a mean, then our head."""

    def __init__(self, encoder: Any, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Any]:
        """The loss, and the outputs that it is of."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(states.dtype)
        logits = self.head((states * weights).sum(1) / weights.sum(1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class OnOurCourse(transformers.Trainer):
    """Its own schedule would spend the first of a few steps at a rate of zero."""

    def __init__(self, phase: Phase, **settings: Any) -> None:
        super().__init__(**settings)
        self._phase = phase
        self.remove_callback(transformers.PrinterCallback)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """The rates of our loop."""
        optimizer = optimizer or self.optimizer
        steps = num_training_steps // self._phase.epochs
        self.lr_scheduler = build_schedule(self._phase, optimizer, steps_per_epoch=steps)
        return self.lr_scheduler

    @property
    def losses(self) -> list[float]:
        """What was logged."""
        return [float(row["loss"]) for row in self.state.log_history if "loss" in row]


def settings_of(phase: Phase, folder: Path, *, batch_size: int, lr: float, **given: Any) -> Any:
    """The Trainer's arguments for a phase of ours on CPUs."""
    return transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=phase.epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=lr,
        weight_decay=phase.weight_decay,
        max_grad_norm=phase.clip_norm,
        optim="adamw_torch_fused",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **given,
    )


def trainer_rows(examples: Examples, tokenizer: Any, *, size: int) -> list[dict[str, Any]]:
    """All examples as the Trainer takes them: ids of at most `size` tokens, and the label."""
    tokenizer.enable_truncation(size)
    rows = [
        {"input_ids": tokenizer.encode(examples.text(i)).ids, "labels": int(label)}
        for i, label in enumerate(examples.targets())
    ]
    tokenizer.no_truncation()
    return rows


def padding_collator(tokenizer: Any, *, size: int, padding: str = "longest") -> Any:
    """Pads a batch of token ids to its longest, or to `size` (`max_length`)."""
    return transformers.DataCollatorWithPadding(
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", model_max_length=size
        ),
        padding=padding,
        max_length=size,
    )
