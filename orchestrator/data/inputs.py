"""Inputs of a network as the data layer prepares them: pixels of images, token numbers of texts."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.batches import VIEW_SEED, Indices, Pixels, epoch_batches, iterate_pixels
from orchestrator.data.examples import Examples
from orchestrator.data.pieces import Windows, pieces_of
from orchestrator.data.tokens import TokenRows, token_table, tokens_path
from orchestrator.data.transforms import dihedral
from orchestrator.spec.parts import Contract, InputContract, TextContract
from orchestrator.spec.strategy import Augment

Prepared = Pixels | TokenRows

GROUPED_BATCHES = 50  # batches whose texts are sorted by length together
LEAST_STRETCHES = 4  # of an epoch: few texts sorted as one would meet the same neighbours each time


def taken(prepared: Prepared, rows: Indices) -> Prepared:
    """Some inputs of a batch."""
    return prepared.take(rows) if isinstance(prepared, TokenRows) else prepared[rows]


def joined(parts: Sequence[Prepared], pad: int) -> Prepared:
    """Batches as one; shorter texts are filled with the token `pad`."""
    texts = [part for part in parts if isinstance(part, TokenRows)]
    if texts:
        return TokenRows.joined(texts, pad)
    return np.concatenate([part for part in parts if not isinstance(part, TokenRows)])


def iterate_inputs(
    examples: Examples,
    batches: Iterable[Indices],
    *,
    contract: Contract,
    view: int | Indices = 0,
    augment: Augment = "none",
    fresh: tuple[int, int] | None = None,
    threads: int,
) -> Generator[tuple[Indices, Prepared], None, None]:
    """Each batch of pieces with its inputs, in the order they are wanted.

    Args:
        examples: Where they are.
        batches: Pieces, as `pieces_of` numbers them; read lazily.
        contract: How they are prepared.
        view: Which of the fixed views; an array has one for each row of the data set.
        augment: Of what an image's fixed views are draws; under `none` the views are the image
            itself, mirrored and turned.
        fresh: Seed and epoch of a new draw of `augment`, which replaces the fixed views.
        threads: How many images are decoded at once.

    Raises:
        DataError: An input changed since the data was prepared.
    """
    if isinstance(contract, TextContract):
        pieces = pieces_of(examples, contract)
        if isinstance(pieces, Windows):
            for rows in batches:
                yield rows, pieces.rows(rows)
            return
        table = token_table(tokens_path(examples, contract.tokenizer))
        for rows in batches:
            yield rows, table.rows(rows, contract, _of(view, rows))
        return
    seed, epoch = fresh if fresh is not None else (VIEW_SEED, view)
    decoded = iterate_pixels(
        examples,
        batches,
        contract=contract,
        augment=augment,
        seed=seed,
        epoch=epoch,
        threads=threads,
    )
    for rows, pixels in decoded:
        turned = augment == "none" and fresh is None
        yield rows, (_turned(pixels, _of(view, rows)) if turned else pixels)


def training_batches(
    examples: Examples, *, contract: Contract, batch_size: int, seed: int, epoch: int
) -> list[Indices]:
    """The training pieces in an order drawn from (seed, epoch), cut into batches.

    Texts of like length share a batch, so that little of it is padding: within stretches of at most
    GROUPED_BATCHES batches they are sorted, and the batches are then drawn in any order.
    """
    pieces = pieces_of(examples, contract)
    rows = pieces.indices("train")
    if isinstance(contract, InputContract):
        return epoch_batches(rows, batch_size=batch_size, seed=seed, epoch=epoch)
    lengths = pieces.lengths()
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(rows)
    grouped = min(GROUPED_BATCHES, max(1, len(rows) // (LEAST_STRETCHES * batch_size)))
    stretch = grouped * batch_size
    batches = []
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        part = part[np.argsort(-lengths[part], kind="stable")]
        batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _of(view: int | Indices, rows: Indices) -> Indices:
    return np.full(len(rows), view) if isinstance(view, int) else view[rows]


def _turned(pixels: Pixels, views: Indices) -> NDArray[np.uint8]:
    if not views.any():
        return pixels
    found = np.empty_like(pixels)
    for view in np.unique(views):
        found[views == view] = dihedral(pixels[views == view], int(view))
    return found
