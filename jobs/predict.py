"""`orchestrator predict BUNDLE INPUT…`: offline answers, one JSON line an input."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.label_arguments import (
    add_label_arguments,
    bundle_named,
    given_labels,
    named_clip,
    predictor_of,
)
from jobs.registry_arguments import add_registry_argument
from jobs.runtime_arguments import add_runtime_arguments
from jobs.terminal import Terminal
from orchestrator.errors import DataError, SpecError
from orchestrator.spec.parts import modality_of

_FILE_NAME = re.compile(r"(/|\./|\.\./|~/)\S+|\S+\.(txt|csv|tsv|json|jsonl|md|parquet)")
LONGEST_PATH = 255


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        help="a bundle's folder, name or name@alias; or a CLIP: clip:ARCHITECTURE/PRETRAINED, or "
        "its folder",
    )
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="files, or folders of them; to a text model also texts themselves; to one that "
        'answers questions JSONL files of {"question": …, "context": …}, or - for lines of stdin',
    )
    parser.add_argument(
        "--top", type=_count, default=5, help="classes or answers to show (default: %(default)s)"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="tell what the likeliest label rests on: cells of an image, words of a text",
    )
    add_label_arguments(parser)
    add_runtime_arguments(parser)
    add_registry_argument(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb; exit code 1 when an input could not be answered."""
    from orchestrator.bundle.attribution import explain

    labels = given_labels(args)
    if labels is None and named_clip(args.bundle) is not None:
        raise SpecError(f"{args.bundle} has no labels of its own. Give some: --labels cat,dog")
    bundle = bundle_named(args)
    kind = bundle.task.kind
    files: list[Any] = (
        list(questions_of(args.inputs))
        if kind == "question-answering"
        else list(inputs_of(args.inputs, texts=modality_of(kind) == "text"))
    )
    predictor = predictor_of(args, bundle, labels)
    answers = []
    for value, answer in zip(files, predictor.predict(files, top=args.top), strict=True):
        if args.explain and "error" not in answer:
            answer["explanation"] = explain(predictor, value).to_json()
        answers.append(answer)
        if not args.json:
            print(json.dumps(answer), flush=True)
    failed = sum("error" in answer for answer in answers)
    return (1 if failed else 0), {"bundle": bundle.digest, "answers": answers, "failed": failed}


def questions_of(inputs: Sequence[str]) -> Iterator[str]:
    """Lines of JSON, each a question on its context: of files, of stdin, or as they are written.

    Raises:
        DataError: A name is no file and no JSON.
    """
    for text in inputs:
        if text == "-":
            lines: Sequence[str] = sys.stdin.read().split("\n")
        elif text.lstrip().startswith("{"):
            lines = [text]
        else:
            try:
                lines = Path(text).expanduser().read_text(encoding="utf-8-sig").split("\n")
            except (OSError, UnicodeDecodeError) as err:
                raise DataError(
                    f"{text}: cannot be read ({err}). Give a JSONL file with an object "
                    '{"question": …, "context": …} a line, - for stdin, or such an object itself'
                ) from err
        yield from (line for line in lines if line.strip())


def inputs_of(inputs: Sequence[str], *, texts: bool) -> Iterator[Path | str]:
    """Files as named; for a folder all files below it, hidden files and folders left out.

    Args:
        inputs: What was written.
        texts: Whether what is no file is an input itself.

    Raises:
        DataError: A name is neither; what looks like a file's name is no text.
    """
    for text in inputs:
        path = Path(text).expanduser() if len(text) < LONGEST_PATH and "\n" not in text else None
        if path is not None and path.is_dir():
            below = (file for file in sorted(path.rglob("*")) if file.is_file())
            yield from (file for file in below if not _is_hidden(file.relative_to(path)))
        elif path is not None and path.exists():
            yield path
        elif texts and not _FILE_NAME.fullmatch(text):
            yield text
        else:
            raise DataError(f"{text}: no such file or folder")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of classes. Use 1 or more")
    return int(text)
