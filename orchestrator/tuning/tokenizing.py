"""The texts of a data set as the tokens of some encoders, and how much of them is read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.data.audit import AuditFinding
from orchestrator.data.examples import Examples
from orchestrator.data.pieces import Windows, ensure_spans, pieces_of
from orchestrator.data.tokens import ensure_tokens, token_table, tokens_path
from orchestrator.errors import listing
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.parts import BackboneSpec, TextContract
from orchestrator.spec.sweep import SweepSpec
from orchestrator.spec.text_encoders import encoder_tokenizer
from orchestrator.tuning.experiments import block_backbones, input_contract, values_of
from orchestrator.tuning.progress import Progress


@dataclass(frozen=True)
class TextReading:
    """How much of a text some trials read.

    Attributes:
        backbone: The name of the encoder.
        contract: How long its inputs are.
        n_windows: Inputs of a text whose outputs are averaged, where it is not read in all.
    """

    backbone: str
    contract: TextContract
    n_windows: int = 1


def tokenize(examples: Examples, backbones: Iterable[BackboneSpec], progress: Progress) -> None:
    """Turn the texts into the tokens of each encoder, once a tokenizer; images are left alone."""
    ensure = ensure_spans if examples.annotated else ensure_tokens
    for backbone in backbones:
        contract = facts_of(backbone).input
        if isinstance(contract, TextContract):
            ensure(
                examples,
                encoder_tokenizer(backbone),
                contract.tokenizer,
                progress=lambda done, total: progress.count("texts tokenized", done, total),
            )


def readings_of(spec: SweepSpec) -> list[TextReading]:
    """Every way in which trials of a search read texts, once, in order; none of images."""
    found: dict[TextReading, None] = {}
    for block in spec.search:
        values = [values_of(block, name) for name in ("max_length", "overlap", "predict_views")]
        for backbone, (size, overlap, n_windows) in itertools.product(
            block_backbones(block), itertools.product(*values)
        ):
            params = {"max_length": size, "overlap": overlap}
            contract = input_contract(backbone, params, spec.task)
            if isinstance(contract, TextContract):
                found[TextReading(backbone.name, contract, n_windows)] = None
    return list(found)


def long_texts(examples: Examples, readings: Iterable[TextReading]) -> list[AuditFinding]:
    """What becomes of the texts that are longer than an input: a finding a way of reading them.

    Args:
        examples: The texts, tokenized.
        readings: The ways in which they are read.
    """
    backbones: dict[tuple[TextContract, int], dict[str, None]] = {}
    for reading in readings:
        way = (reading.contract, reading.n_windows)
        backbones.setdefault(way, {})[reading.backbone] = None
    return [
        finding
        for (contract, n_windows), names in backbones.items()
        for finding in (
            _cut_off(examples, contract, n_windows, listing(names))
            if contract.overlap is None
            else _in_windows(examples, contract, listing(names))
        )
    ]


def _cut_off(
    examples: Examples, contract: TextContract, n_windows: int, names: str
) -> Iterator[AuditFinding]:
    """Texts of which the first windows alone are read."""
    table = token_table(tokens_path(examples, contract.tokenizer))
    lengths, most = table.lengths(), table.frame.most(contract) * n_windows
    long = np.flatnonzero(lengths > most)
    if not len(long):
        return
    read = f"{n_windows} windows" if n_windows > 1 else "one window"
    yield AuditFinding.of(
        "long-texts",
        "note",
        f"{len(long):,} of {len(examples):,} texts have more tokens than the {most:,} that {names} "
        f"reads of a text ({read} of max_length {contract.size}): the rest of them is cut off. "
        "Raise max_length or predict_views to read more",
        [examples.uri(int(i)) for i in long[np.argsort(-lengths[long], kind="stable")]],
    )


def _in_windows(examples: Examples, contract: TextContract, names: str) -> Iterator[AuditFinding]:
    """Texts that answers point into: all of them is read, but for the end of long questions."""
    windows = pieces_of(examples, contract)
    assert isinstance(windows, Windows)
    n_windows = windows.per_example()
    long, cut = np.flatnonzero(n_windows > 1), windows.cut_leads()
    size = f"max_length {contract.size} of {names}"
    if len(long):
        yield AuditFinding.of(
            "long-texts",
            "note",
            f"{len(long):,} of {len(examples):,} texts are longer than {size}: they are read in "
            f"{int(n_windows[long].sum()):,} windows, nothing is cut off",
            [examples.uri(int(i)) for i in long[np.argsort(-n_windows[long], kind="stable")]],
        )
    if len(cut):
        yield AuditFinding.of(
            "long-texts",
            "note",
            f"{len(cut):,} of {len(examples):,} questions are longer than half of {size}: the "
            "rest of them is cut off. Raise max_length to read more",
            [examples.uri(int(i)) for i in cut],
        )
