"""Calls of several threads as one: whoever comes while a batch runs goes with the next.

A network takes a batch in little more time than one input where it has a GPU to itself. Nothing
waits for a batch to fill: a lone call runs at once, and batches grow with the load.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition
from typing import Generic, TypeVar

import numpy as np

from orchestrator.bundle.predictor import NetworkPredictor, Outputs
from orchestrator.data.inputs import Prepared, joined
from orchestrator.data.tokens import TokenRows
from orchestrator.spec.parts import TextContract
from orchestrator.spec.stopping import Stopped, told_to_stop

_LOOK_EVERY_S = 0.1  # whether whoever waits has been told to stop

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(eq=False)
class _Call(Generic[In, Out]):
    """One thread's value, and what came of it: an outcome, or why there is none."""

    value: In
    given_up: Callable[[], bool]
    outcome: Out | None = None
    failure: BaseException | None = None
    ended: bool = False


class Batcher(Generic[In, Out]):
    """A function that threads call with a value each, and that runs on many values at once.

    One batch runs at a time, in the thread of one of its callers. Where a batch fails, each of its
    values is tried alone, so that a bad one fails alone. A thread whose work is told to stop while
    it waits waits no longer, and its value goes nowhere.

    Args:
        run: The outcomes of some values, in their order.
        rows: How many inputs are in a value.
        most_rows: Inputs of a batch; a value that has more goes alone.
    """

    def __init__(
        self,
        run: Callable[[Sequence[In]], Sequence[Out]],
        *,
        rows: Callable[[In], int],
        most_rows: int,
    ) -> None:
        self._run = run
        self._rows = rows
        self._most_rows = most_rows
        self._waiting: deque[_Call[In, Out]] = deque()
        self._changed = Condition()
        self._runs = False

    def __call__(self, value: In) -> Out:
        """The outcome of one value; raises what `run` raised of it alone, or Stopped."""
        mine: _Call[In, Out] = _Call(value, told_to_stop())
        with self._changed:
            self._waiting.append(mine)
        while (batch := self._next(mine)) is not None:
            try:
                self._answer(batch)
            finally:
                with self._changed:
                    self._runs = False
                    self._changed.notify_all()
        if mine.failure is not None:
            raise mine.failure
        return mine.outcome  # type: ignore[return-value]

    def _next(self, mine: _Call[In, Out]) -> list[_Call[In, Out]] | None:
        """A batch to run, which is this thread's turn; None once its own call has ended."""
        with self._changed:
            self._drop_given_up()
            while self._runs and not mine.ended:
                self._changed.wait(_LOOK_EVERY_S)
                self._drop_given_up()
            if mine.ended:
                return None
            self._runs = True
            batch = [self._waiting.popleft()]
            room = self._most_rows - self._rows(batch[0].value)
            while self._waiting and self._rows(self._waiting[0].value) <= room:
                batch.append(self._waiting.popleft())
                room -= self._rows(batch[-1].value)
            return batch

    def _drop_given_up(self) -> None:
        for call in [call for call in self._waiting if call.given_up()]:
            self._waiting.remove(call)
            call.failure, call.ended = Stopped(), True

    def _answer(self, batch: Sequence[_Call[In, Out]]) -> None:
        try:
            outcomes = self._run([call.value for call in batch])
            for call, outcome in zip(batch, outcomes, strict=True):
                call.outcome = outcome
        except BaseException as err:  # noqa: BLE001  (raised by the call that it belongs to)
            if len(batch) == 1:
                batch[0].failure = err
            else:
                for call in batch:
                    self._answer([call])
        finally:
            for call in batch:
                call.ended = True


class BatchedPredictor(NetworkPredictor):
    """A network that threads share: their passes are joined into one.

    Args:
        network: That answers.
        most_rows: Inputs of a pass.
    """

    def __init__(self, network: NetworkPredictor, *, most_rows: int) -> None:
        super().__init__(network.manifest, network.preparer, n_features=network.n_features)
        self._network = network
        self._pass_of: Batcher[Prepared, Outputs] = Batcher(
            self._together, rows=len, most_rows=most_rows
        )

    def run(self, prepared: Prepared) -> Outputs:
        return self._pass_of(prepared)

    def _together(self, parts: Sequence[Prepared]) -> list[Outputs]:
        contract = self.manifest.input
        pad = contract.pad if isinstance(contract, TextContract) else 0
        found = self._network.run(joined(parts, pad))
        return split_outputs(found, parts)


def split_outputs(found: Outputs, parts: Sequence[Prepared]) -> list[Outputs]:
    """The outputs of each of the batches that went through a network as one."""
    ends = np.cumsum([len(part) for part in parts])[:-1]
    pairs = zip(np.split(found.logits, ends), np.split(found.features, ends), strict=True)
    return [trimmed(Outputs(*pair), part) for part, pair in zip(parts, pairs, strict=True)]


def trimmed(found: Outputs, part: Prepared) -> Outputs:
    """Outputs of every token without those of the padding that longer texts beside it brought."""
    if found.logits.ndim == 3 and isinstance(part, TokenRows):
        return Outputs(found.logits[:, : part.ids.shape[1]], found.features)
    return found
