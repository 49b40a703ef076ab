"""Masked-language modelling as the objective of a pretraining, and a head that is worth comparing.

Weights that come without a head get a new one, which alone is trained on the frozen encoder first,
until what is held out no longer improves. So the perplexity before is the same encoder's, frozen
under a converged head, and the fall after it is the encoder's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from orchestrator.data.masking import Masking
from orchestrator.data.packing import Indices, PackedRows
from orchestrator.models.masked_language import MaskedLanguageModel, save_encoder
from orchestrator.models.tokens import Tokens
from orchestrator.spec.parts import BackboneSpec
from orchestrator.training.param_groups import ParamGroup
from orchestrator.training.pretraining import Measures, Told
from orchestrator.training.timing import median_seconds
from orchestrator.training.workers import Workers

EVALUATION_ROWS = 16
LEAST_MEASURED = 4_096  # tokens that a measure tells, in several draws where rows are few
MOST_DRAWS = 8
MOST_STATES = 100_000  # hidden states that a new head is trained on
HEAD_LR = 1e-3
HEAD_BATCH = 256
HEAD_STEPS = 50  # between two looks at what is held out
LEAST_GAIN = 1e-3  # of the held-out loss, relative, that counts as progress
USUAL_LOOKS = 30  # until then
PROBE_STEPS = 3
PATIENCE = 3  # looks without progress before the rate falls
FALL = 0.2
LOWEST_LR = HEAD_LR * FALL**2  # progress that is too small even here: the head has converged


@dataclass(frozen=True)
class _Batch:
    """Masked rows on the device."""

    tokens: Tokens
    chosen: Tensor
    targets: Tensor


class MaskedLanguageObjective:
    """Tells hidden tokens of packed rows.

    Args:
        spec: The encoder, as it was named.
        model: The encoder with its head, on the workers' device.
        learnt: Rows to learn from.
        held_out: Rows to measure on.
        masking: Hides their tokens.
        seed: Of the order in which a new head sees hidden states.
        workers: Who share the measuring.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        model: MaskedLanguageModel,
        learnt: PackedRows,
        held_out: PackedRows,
        masking: Masking,
        *,
        seed: int,
        workers: Workers,
    ) -> None:
        self._spec = spec
        self.model = model
        self.module: nn.Module = model
        self.n_rows = len(learnt)
        self._learnt, self._held_out, self._masking = learnt, held_out, masking
        self._seed, self._workers = seed, workers
        self._counts = masking.n_chosen(learnt)
        drawn = int(masking.n_chosen(held_out).sum())
        self._draws = min(MOST_DRAWS, max(1, -(-LEAST_MEASURED // max(1, drawn))))

    def n_units(self, rows: Indices) -> int:
        """How many tokens are hidden in some rows."""
        return int(self._counts[rows].sum())

    def batches(self, batches: Sequence[Indices], epoch: int) -> Iterator[_Batch]:
        """Rows with the tokens hidden that this epoch hides."""
        for rows in batches:
            yield self._hidden(self._learnt, rows, epoch)

    def loss(self, module: nn.Module, batch: _Batch) -> Tensor:
        """Summed cross-entropy of the hidden tokens."""
        return _summed(module(batch.tokens, batch.chosen), batch)

    def optimizer(self, groups: tuple[ParamGroup, ...]) -> Optimizer:
        """AdamW."""
        params: list[dict[str, Any]] = [
            {"params": list(g.parameters), "lr": g.lr, "weight_decay": g.weight_decay}
            for g in groups
        ]
        return torch.optim.AdamW(params, fused=True)

    def save(self, folder: Path) -> None:
        """Write weights, config and tokenizer."""
        save_encoder(self.model, self._spec, folder)

    @torch.inference_mode()
    def measure(self) -> Measures:
        """Cross-entropy and perplexity of the same hidden tokens of the held-out rows each time.

        In full precision: once prepared for training, the model as a whole computes in half.
        """
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self._workers.device)
        for batch in self._measured():
            states = self.model.encode(batch.tokens)[batch.chosen]
            sums[0] += _summed(self.model.tell(states), batch)
            sums[1] += len(batch.targets)
        total, n_units = self._workers.total(sums).tolist()
        loss = total / n_units
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def warm_up(self, told: Told, stopped: Callable[[], bool]) -> dict[str, Any] | None:
        """Train a new head on the frozen encoder until it has converged."""
        if self.model.has_own_head:
            return {"head": "own"}
        found = self._states(stopped)
        if found is None:
            return None
        states, targets = found
        held, truth = self._held_states()
        self._begin_with_frequencies(targets)
        told(f"training a head on {len(states):,} hidden states of the frozen encoder")
        losses = self._converge(states, targets, held, truth, told, stopped)
        if losses is None:
            return None
        return {"head": "new", "states": len(states), "held_out_losses": losses}

    def warm_up_seconds(self) -> float:
        """Of hidden states once, of steps and looks as often as they are usual."""
        if self.model.has_own_head:
            return 0.0
        rows = np.arange(min(EVALUATION_ROWS, self.n_rows))
        batch = self._hidden(self._learnt, rows, 1)
        states = self._encoded(batch)
        few, truth = states[:HEAD_BATCH], batch.targets[:HEAD_BATCH]
        head = self.model.head_parameters()

        def step() -> object:
            return torch.autograd.grad(F.cross_entropy(self.model.tell(few), truth), head)

        def seconds_of(action: Callable[[], object]) -> float:
            return median_seconds(action, self._workers.device, times=PROBE_STEPS)

        share = len(few) / HEAD_BATCH
        encode_s = seconds_of(lambda: self._encoded(batch))
        step_s = seconds_of(step) / share
        look_s = seconds_of(lambda: self._head_loss(few, truth)) / share
        n_held = int(self._masking.n_chosen(self._held_out).sum()) * self._draws
        n_states = min(MOST_STATES, int(self._counts.sum()) * MOST_DRAWS) + n_held
        return float(
            encode_s / len(states) * n_states
            + USUAL_LOOKS * (HEAD_STEPS * step_s + look_s * n_held / HEAD_BATCH)
        )

    def _converge(
        self,
        states: Tensor,
        targets: Tensor,
        held: Tensor,
        truth: Tensor,
        told: Told,
        stopped: Callable[[], bool],
    ) -> list[float] | None:
        """AdamW at falling rates; the head's best state stays. The held-out loss at each look."""
        head = self.model.head_parameters()
        frozen = {id(p) for p in self.model.parameters()} - {id(p) for p in head}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)
        optimizer = torch.optim.AdamW(head, lr=HEAD_LR, weight_decay=0.0, fused=True)
        rng = np.random.default_rng([self._seed, 0])
        best, kept = self._head_loss(held, truth), [p.detach().clone() for p in head]
        losses, waited, order = [best], 0, np.empty(0, np.int64)
        while optimizer.param_groups[0]["lr"] >= LOWEST_LR * 0.99:
            for _ in range(HEAD_STEPS):
                if len(order) < HEAD_BATCH:
                    order = np.concatenate([order, rng.permutation(len(states))])
                rows, order = order[:HEAD_BATCH], order[HEAD_BATCH:]
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(self.model.tell(states[rows]), targets[rows]).backward()
                optimizer.step()
            # Each worker trains the head, and all leave off by the first one's losses.
            loss = torch.tensor([self._head_loss(held, truth)], dtype=torch.float64)
            losses.append(self._of_first(loss.to(states.device)).item())
            waited = 0 if losses[-1] < best * (1 - LEAST_GAIN) else waited + 1
            if losses[-1] < best:
                best, kept = losses[-1], [p.detach().clone() for p in head]
            told(f"head: look {len(losses) - 1}, held-out loss {losses[-1]:.3f}")
            if stopped():
                return None
            if waited >= PATIENCE:
                waited = 0
                optimizer.param_groups[0]["lr"] *= FALL
                _copy(kept, head)
        _copy([self._of_first(parameter) for parameter in kept], head)
        self.model.requires_grad_(True)
        self.model.zero_grad(set_to_none=True)
        return losses

    def _of_first(self, tensor: Tensor) -> Tensor:
        """The first worker's values."""
        mine = tensor if self._workers.rank == 0 else torch.zeros_like(tensor)
        return self._workers.total(mine)

    @torch.inference_mode()
    def _head_loss(self, states: Tensor, targets: Tensor) -> float:
        parts = zip(states.split(HEAD_BATCH), targets.split(HEAD_BATCH), strict=True)
        summed = sum(
            float(F.cross_entropy(self.model.tell(some), truth, reduction="sum"))
            for some, truth in parts
        )
        return summed / len(targets)

    @torch.no_grad()
    def _begin_with_frequencies(self, targets: Tensor) -> None:
        """What a head that knows nothing of the context should say: how often each token occurs."""
        bias = self.model.output_bias()
        if bias is not None:
            counts = torch.bincount(targets, minlength=len(bias)).float() + 0.1
            bias.copy_((counts / counts.sum()).log())

    def _states(self, stopped: Callable[[], bool]) -> tuple[Tensor, Tensor] | None:
        """Hidden states of hidden tokens in the rows to learn, and what stood there."""
        states, targets, have = [], [], 0
        order = np.random.default_rng([self._seed, 1]).permutation(self.n_rows)
        for draw in range(1, MOST_DRAWS + 1):
            for start in range(0, len(order), EVALUATION_ROWS):
                rows = order[start : start + EVALUATION_ROWS]
                batch = self._hidden(self._learnt, rows, draw)
                states.append(self._encoded(batch))
                targets.append(batch.targets)
                have += len(batch.targets)
                if have >= MOST_STATES:
                    return torch.cat(states), torch.cat(targets)
                if stopped():
                    return None
        return torch.cat(states), torch.cat(targets)

    def _held_states(self) -> tuple[Tensor, Tensor]:
        batches = [
            self._hidden(self._held_out, rows, draw)
            for draw in range(self._draws)
            for rows in _blocks(np.arange(len(self._held_out)))
        ]
        states = [self._encoded(batch) for batch in batches]
        return torch.cat(states), torch.cat([batch.targets for batch in batches])

    @torch.no_grad()
    def _encoded(self, batch: _Batch) -> Tensor:
        self.model.eval()
        return self.model.encode(batch.tokens)[batch.chosen]

    def _measured(self) -> Iterator[_Batch]:
        """This worker's share of the held-out rows, in each of the fixed draws."""
        mine = self._workers.share(len(self._held_out))
        for draw in range(self._draws):
            for rows in _blocks(mine):
                yield self._hidden(self._held_out, rows, draw)

    def _hidden(self, packed: PackedRows, rows: Indices, epoch: int) -> _Batch:
        """Masked rows on the device."""
        masked = self._masking.hide(packed, rows, epoch=epoch)
        device = self._workers.device

        def moved(values: Any) -> Tensor:
            return torch.from_numpy(values).to(device, non_blocking=True)

        tokens = Tokens(moved(masked.ids), moved(masked.present))
        return _Batch(tokens, moved(masked.chosen), moved(masked.targets))


def _summed(logits: Tensor, batch: _Batch) -> Tensor:
    return F.cross_entropy(logits.float(), batch.targets, reduction="sum")


def _blocks(rows: Indices) -> list[Indices]:
    return [rows[at : at + EVALUATION_ROWS] for at in range(0, len(rows), EVALUATION_ROWS)]


@torch.no_grad()
def _copy(values: list[Tensor], parameters: list[nn.Parameter]) -> None:
    for value, parameter in zip(values, parameters, strict=True):
        parameter.copy_(value)
