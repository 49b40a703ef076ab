"""Unlabelled documents to learn from: texts or images, read once, a share of them held out.

A corpus is a set of Examples that share one empty label: its training split is learnt, its
validation split only measured on. Which documents are held out depends on the seed and their
content alone. A document that occurs twice counts once, so that nothing held out is also learnt.
A text of more than PIECE_CHARS characters counts as several documents, cut at white space.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.data import locations
from orchestrator.data.blobs import BlobWriter
from orchestrator.data.examples import Example, Examples
from orchestrator.data.folders import IMAGE_SUFFIXES, TEXT_SUFFIXES
from orchestrator.data.hub_datasets import is_saved_dataset, open_hub_dataset, open_saved_dataset
from orchestrator.data.preparing import decoded_rows
from orchestrator.data.rows import Reading, Row
from orchestrator.data.scanning import Progress, Scanned, scan
from orchestrator.data.splitting import held_out
from orchestrator.data.tables import (
    INPUT_NAMES,
    PATH_NAMES,
    SUFFIXES,
    TEXT_NAMES,
    Table,
    open_manifest,
)
from orchestrator.data.texts import decode_text, encoded_text, text_hash
from orchestrator.errors import DataError, UnreadableExample, listing
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import Modality
from orchestrator.spec.pretraining import CorpusSpec
from orchestrator.tasks.annotations import Question

UNLABELLED = ""
PIECE_CHARS = 100_000
BAD_FRACTION = 0.02  # of unreadable documents above which a corpus is refused
_SHOWN = 3


@dataclass(frozen=True)
class Corpus:
    """Documents that are ready, the digest of their contents, and what was found on the way."""

    examples: Examples
    digest: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def n_held_out(self) -> int:
        """Documents that are only measured on."""
        return len(self.examples.indices("validation"))


def read_corpus(
    spec: CorpusSpec,
    *,
    modality: Modality,
    fraction: float,
    seed: int,
    excluded: frozenset[str] = frozenset(),
    cache: Path,
    progress: Progress | None = None,
) -> Corpus:
    """Read the documents that `spec` names.

    Args:
        spec: Where they are, with local paths absolute.
        modality: What they are.
        fraction: Share to hold out.
        seed: Of the choice of what is held out.
        excluded: Contents that must not be learnt: what a sweep validates and tests on.
        cache: Local folder that outlives the process.
        progress: Called with the number of documents read and of all.

    Raises:
        DataError: There is nothing, too much of it cannot be read, or too little is left to hold
            any out.
    """
    with BlobWriter(cache / "blobs") as writer:
        rows = tuple(_rows(spec, modality, writer, cache))
        blobs = writer.close() if writer.count else None
    where = listing(spec.files, most=_SHOWN)
    if not rows:
        kinds = TEXT_SUFFIXES if modality == "text" else IMAGE_SUFFIXES
        raise DataError(
            f"the corpus is empty: no {modality} in {where}. In folders, files count by suffix "
            f"({listing(sorted(kinds))}); name others by a glob"
        )
    reading = Reading(f"corpus {digest_of(spec.to_json())}", rows, blobs)
    (scans,) = scan([reading], modality=modality, cache=cache, progress=progress)
    paths = (blobs,) if blobs is not None else ()
    found, bad = decoded_rows(["train"], [reading], [scans], paths)
    unreadable = [quarantined for quarantined in bad if quarantined.reason != "is empty"]
    if len(unreadable) > BAD_FRACTION * len(rows):
        told = "; ".join(f"{item.uri}: {item.reason}" for item in unreadable[:_SHOWN])
        raise DataError(
            f"{len(unreadable):,} of the {len(rows):,} documents of the corpus cannot be read "
            f"({told}). At most {100 * BAD_FRACTION:g} % may be: repair or remove them"
        )
    notes = [
        *_told(len(bad) - len(unreadable), "are empty and are left out"),
        *_told(len(unreadable), "cannot be read and are left out"),
        *_told(_n_assumed(scans), "are not UTF-8 and were read as Windows-1252"),
    ]
    return _divided(
        found, paths, where=where, fraction=fraction, seed=seed, excluded=excluded, notes=notes,
        cache=cache,
    )  # fmt: skip


def corpus_of_examples(examples: Examples, *, fraction: float, seed: int, cache: Path) -> Corpus:
    """The training examples of a data set, without their labels; what it validates on stays out.

    Of annotated texts only the text is learnt, of questions the passages that they are about.

    Raises:
        DataError: Too few are left to hold any out.
    """
    rows, blobs = _unlabelled(examples, cache)
    return _divided(
        rows,
        blobs,
        where="the training examples",
        fraction=fraction,
        seed=seed,
        excluded=evaluated_contents(examples),
        notes=[],
        cache=cache,
    )


def evaluated_contents(examples: Examples, *, texts: bool = False) -> frozenset[str]:
    """The contents that a sweep validates and tests on, which no corpus may hold.

    Args:
        examples: Of the sweep.
        texts: Whether to read them, so that they are cut as a corpus cuts texts.
    """
    rows = [int(i) for split in ("validation", "test") for i in examples.indices(split)]
    if texts or examples.annotated:
        return frozenset(text_hash(piece) for i in rows for piece in pieces(_passage(examples, i)))
    return frozenset(examples.content(i) for i in rows)


def pieces(text: str, most: int = PIECE_CHARS) -> Iterator[str]:
    """A text in stretches of at most `most` characters, cut before white space where there is any.

    Joined, they are the text.
    """
    start = 0
    while len(text) - start > most:
        end = start + most
        cut = next((i for i in range(end, start, -1) if text[i].isspace()), end)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _unlabelled(examples: Examples, cache: Path) -> tuple[list[Example], tuple[Path, ...]]:
    """The training examples as documents, and the blobs that they are in."""
    train = [int(i) for i in examples.indices("train")]
    if not examples.annotated:
        rows = [examples.example(i) for i in train]
        return [replace(row, labels=(UNLABELLED,)) for row in rows], examples.blob_paths
    uris: dict[str, str] = {}  # of each distinct piece of a passage
    for i in train:
        for piece in pieces(_passage(examples, i)):
            uris.setdefault(piece, examples.uri(i))
    with BlobWriter(cache / "blobs") as writer:
        documents = [
            Example(uri, text_hash(piece), "train", (UNLABELLED,), 0, writer.add(piece.encode()))
            for piece, uri in uris.items()
        ]
        return documents, (writer.close(),)


def _passage(examples: Examples, i: int) -> str:
    """The text of an example without what is asked of it."""
    if not examples.annotated:
        return examples.text(i)
    annotation = examples.annotation(i)
    return annotation.context if isinstance(annotation, Question) else annotation.text


def _divided(
    found: Iterable[Example],
    blobs: Sequence[Path],
    *,
    where: str,
    fraction: float,
    seed: int,
    excluded: frozenset[str],
    notes: list[str],
    cache: Path,
) -> Corpus:
    """Distinct documents with some held out, in a folder whose name says all that is in it."""
    distinct: dict[str, Example] = {}
    n_evaluated = n_copies = 0
    for row in found:
        if row.content in excluded:
            n_evaluated += 1
        elif row.content in distinct:
            n_copies += 1
        else:
            distinct[row.content] = row
    if len(distinct) < 2:
        raise DataError(
            f"the corpus ({where}) holds {len(distinct)} distinct documents. At least two are "
            "needed: one to learn, one to hold out"
        )
    contents = sorted(distinct)
    mask = held_out(
        contents, [(UNLABELLED,)] * len(contents), fraction=fraction, seed=seed, purpose="corpus"
    )
    rows = [
        replace(distinct[content], split="validation" if held else "train")
        for content, held in zip(contents, mask, strict=True)
    ]
    notes += _told(n_copies, "are copies of others and count once")
    notes += _told(n_evaluated, "are validated or tested on by the sweep and are left out")
    name = digest_of([[[r.uri, r.content, r.split] for r in rows], [b.name for b in blobs]])
    folder = cache / "corpora" / name[:32]
    examples = (
        Examples.open(folder)
        if folder.exists()
        else Examples.write(folder, rows, labels=[UNLABELLED], multilabel=False, blobs=blobs)
    )
    digest = hashlib.sha256("\n".join(contents).encode()).hexdigest()
    return Corpus(examples, digest, tuple(notes))


def _rows(spec: CorpusSpec, modality: Modality, writer: BlobWriter, cache: Path) -> Iterator[Row]:
    for location in spec.files:
        place = locations.normal_location(location)
        if place.startswith("hub:"):
            table: Table = open_hub_dataset(place, split="train", cache=cache)
            yield from _table_rows(table, place, spec, modality, writer)
        elif not locations.exists(place):
            matches = sorted(glob.glob(place, recursive=True))  # noqa: PTH207  (absolute already)
            if not matches:
                raise DataError(f"the corpus {place} matches no file")
            for match in matches:
                if Path(match).is_file():
                    yield from _file_rows(match, spec, modality, writer)
        elif not locations.is_folder(place):
            yield from _file_rows(place, spec, modality, writer)
        elif is_saved_dataset(place):
            table = open_saved_dataset(place, split="train")
            yield from _table_rows(table, place, spec, modality, writer)
        else:
            yield from _folder_rows(place, modality, writer)


def _folder_rows(folder: str, modality: Modality, writer: BlobWriter) -> Iterator[Row]:
    """The files below a folder that are of the wanted kind by suffix, or have none."""
    suffixes = TEXT_SUFFIXES if modality == "text" else IMAGE_SUFFIXES
    for relative, file in locations.files_under(folder):
        hidden = any(part.startswith((".", "__MACOSX")) for part in relative.split("/"))
        suffix = Path(relative).suffix.lower()
        if not hidden and (not suffix or suffix in suffixes):
            yield from _document_rows(file.uri, file.version, modality, writer)


def _file_rows(
    place: str, spec: CorpusSpec, modality: Modality, writer: BlobWriter
) -> Iterator[Row]:
    """A table's rows, or a document of its own."""
    if place.lower().endswith(SUFFIXES):
        yield from _table_rows(open_manifest(place), place, spec, modality, writer)
    else:
        yield from _document_rows(place, None, modality, writer)


def _document_rows(
    uri: str, version: str | None, modality: Modality, writer: BlobWriter
) -> Iterator[Row]:
    whole = Row(uri, (UNLABELLED,), version=version)
    if modality == "image" or locations.is_uri(uri) or Path(uri).stat().st_size <= PIECE_CHARS:
        yield whole
        return
    try:
        text = decode_text(Path(uri).read_bytes())
    except UnreadableExample:
        yield whole  # the scan says why
        return
    yield from _text_rows(text, uri, writer)


def _text_rows(text: str, uri: str, writer: BlobWriter) -> Iterator[Row]:
    for number, piece in enumerate(pieces(text)):
        yield Row(f"{uri}#{number}", (UNLABELLED,), writer.add(encoded_text(piece)))


def _table_rows(
    table: Table, location: str, spec: CorpusSpec, modality: Modality, writer: BlobWriter
) -> Iterator[Row]:
    """A document a row of one column: its text, its bytes, or where it lies."""
    column = _column(table, location, spec.column, modality)
    inline = modality == "text" and column.casefold() not in PATH_NAMES
    for number, cells in enumerate(table.rows(column, column)):
        cell, uri = cells.input, f"{location}#{number}"
        if isinstance(cell, dict):  # of `datasets`
            cell = cell.get("bytes") or cell.get("path")
        if cell is None or cell == "":
            yield Row(uri, (UNLABELLED,), writer.add(b""))
        elif isinstance(cell, bytes):
            yield Row(uri, (UNLABELLED,), writer.add(cell))
        elif not isinstance(cell, str):
            raise DataError(
                f"{location}, row {number}: a {type(cell).__name__} in column {column!r}, where "
                f"{'a text' if inline else 'a path'} is expected. Name another in corpus.column"
            )
        elif inline:
            yield from _text_rows(cell, uri, writer)
        else:
            yield Row(locations.join(table.base, cell), (UNLABELLED,))


def _column(table: Table, location: str, wanted: str | None, modality: Modality) -> str:
    has = f"It has {listing(table.columns)}"
    if wanted is not None:
        if wanted not in table.columns:
            raise DataError(f"{location}: corpus.column {wanted!r} is no column. {has}")
        return wanted
    names = TEXT_NAMES if modality == "text" else INPUT_NAMES
    by_name = {column.casefold(): column for column in reversed(table.columns)}
    found = next((by_name[name] for name in names if name in by_name), table.preferred[0])
    if found is None:
        raise DataError(
            f"{location}: no column is named like one of {modality}s ({listing(names)}). {has}. "
            "Name one in corpus.column"
        )
    return found


def _n_assumed(scans: Sequence[Scanned]) -> int:
    return sum(found.assumed for found in scans)


def _told(count: int, what: str) -> list[str]:
    return [f"{count:,} documents {what}"] if count else []
