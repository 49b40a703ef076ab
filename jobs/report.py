"""`orchestrator report SWEEP_DIR`: the sweep as one HTML page and a terminal summary."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.terminal import Terminal
from orchestrator.errors import SpecError

THUMBNAIL_PIXELS = 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", type=Path, help="the sweep's folder")


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    folder = sweep_folder(args.sweep_dir)
    from orchestrator.report.page import write_report
    from orchestrator.report.terminal import terminal_summary

    path = write_report(folder, preview=previews(folder))
    if not args.json:
        terminal.show(terminal_summary(folder))
        terminal.show(f"report: {path}")
    return 0, {"sweep": str(folder), "report": str(path)}


def sweep_folder(path: Path) -> Path:
    """The absolute path of a sweep's folder.

    Raises:
        SpecError: It is none.
    """
    folder = path.expanduser().resolve()
    if not (folder / "sweep.json").is_file():
        raise SpecError(
            f"{path} is no sweep's folder: it has no sweep.json. "
            "`orchestrator sweep SPEC` ends by naming its folder"
        )
    return folder


def previews(folder: Path) -> Callable[[str, int], bytes | str | None]:
    """Small JPEGs of a sweep's images, or its texts, for the report's gallery."""
    from orchestrator.data.examples import Examples
    from orchestrator.errors import DataError
    from orchestrator.runtime.folders import SweepFolder
    from orchestrator.spec.parts import modality_of

    examples = Examples.open(folder / "data")
    is_text = modality_of(SweepFolder(folder).spec().task) == "text"

    def preview(_split: str, example: int) -> bytes | str | None:
        try:
            if is_text:
                return examples.text(example)
            image = examples.image(example, least_side=THUMBNAIL_PIXELS)
        except DataError:
            return None
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=80)
        return stream.getvalue()

    return preview
