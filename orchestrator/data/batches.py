"""Batches of pixels, decoded by threads ahead of whoever consumes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.augmenting import augmented_pixels, example_rng
from orchestrator.data.examples import Examples
from orchestrator.data.transforms import decode_side
from orchestrator.spec.parts import InputContract
from orchestrator.spec.strategy import Augment

Indices = NDArray[np.int64]
Pixels = NDArray[np.uint8]

VIEW_SEED = 0  # of fixed draws: view n of an image is what it would be in epoch n under this seed


def epoch_batches(indices: Indices, *, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """`indices` in an order drawn from (seed, epoch), cut into batches; the last may be smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(indices)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def iterate_pixels(
    examples: Examples,
    batches: Iterable[Indices],
    *,
    contract: InputContract,
    augment: Augment,
    seed: int,
    epoch: int | Indices,
    threads: int,
    prefetch: int = 2,
) -> Generator[tuple[Indices, Pixels], None, None]:
    """Each batch of rows with its pixels, uint8 [n, 3, S, S].

    The pixels depend on the example, seed and epoch, never on threads or batches. At most
    `prefetch` batches besides the one handed out are in memory. Closing the generator, or an error
    in the consumer, ends the threads; an error in a thread is raised here.

    Args:
        examples: Where the images are.
        batches: Rows, in the order they are wanted; read lazily.
        contract: Size and geometry of the pixels.
        augment: `none` for the eval transform.
        seed: Of the augmentation.
        epoch: Of the augmentation; an array has one for each row of the data set.
        threads: How many images are decoded at once, at least 1.
        prefetch: How many batches are decoded ahead; 0 decodes one when it is asked for.

    Raises:
        DataError: An image changed since the data was prepared.
    """
    view = _View(examples, contract, augment, seed, epoch)
    pending: deque[_Batch] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for indices in batches:
            pending.append(_Batch.start(view, np.asarray(indices, np.int64), pool))
            if len(pending) > prefetch:
                yield pending.popleft().finished()
        while pending:
            yield pending.popleft().finished()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _View:
    """How an example is seen in this epoch."""

    examples: Examples
    contract: InputContract
    augment: Augment
    seed: int
    epoch: int | Indices

    def write(self, i: int, out: Pixels) -> None:
        """The pixels of example `i` into `out`, uint8 [3, S, S]."""
        image = self.examples.image(i, least_side=decode_side(self.contract))
        epoch = self.epoch if isinstance(self.epoch, int) else int(self.epoch[i])
        rng = example_rng(self.seed, epoch, self.examples.content(i))
        out[:] = augmented_pixels(image, self.contract, self.augment, rng)


@dataclass(frozen=True)
class _Batch:
    """Rows, their pixels in the making, and what is left to wait for."""

    indices: Indices
    pixels: Pixels
    futures: list[Future[None]]

    @classmethod
    def start(cls, view: _View, indices: Indices, pool: ThreadPoolExecutor) -> _Batch:
        side = view.contract.size
        pixels = np.empty((len(indices), 3, side, side), np.uint8)
        jobs = zip(indices.tolist(), pixels, strict=True)
        return cls(indices, pixels, [pool.submit(view.write, i, out) for i, out in jobs])

    def finished(self) -> tuple[Indices, Pixels]:
        for future in self.futures:
            future.result()
        return self.indices, self.pixels
