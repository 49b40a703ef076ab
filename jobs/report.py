"""`orchestrator report SWEEP_DIR`: the sweep as one HTML page and a terminal summary."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.terminal import Terminal
from orchestrator.errors import SpecError
from orchestrator.spec.mirror import local_path, location_of
from orchestrator.spec.object_store import checked_uri, is_uri

THUMBNAIL_PIXELS = 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", help="the sweep's folder, or its URI")


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb."""
    folder = sweep_folder(args.sweep_dir)
    from orchestrator.report.page import write_report
    from orchestrator.report.terminal import terminal_summary

    path = write_report(folder, preview=previews(folder))
    if not args.json:
        terminal.show(terminal_summary(folder))
        terminal.show(f"report: {path}")
    return 0, {"sweep": location_of(folder), "report": location_of(path)}


def sweep_folder(location: str) -> Path:
    """The absolute path of a sweep's folder, or where this machine has what its URI has.

    Raises:
        SpecError: It is none.
        StorageError: The URI cannot be reached.
    """
    if is_uri(location):
        folder = local_path(checked_uri(location))
        from orchestrator.runtime.folders import SweepFolder

        SweepFolder(folder).refresh()
    else:
        folder = Path(location).expanduser().resolve()
    if not (folder / "sweep.json").is_file():
        raise SpecError(
            f"{location} is no sweep's folder: it has no sweep.json. "
            "`orchestrator sweep SPEC` ends by naming its folder"
        )
    return folder


def previews(folder: Path) -> Callable[[str, int], bytes | str | None]:
    """Small JPEGs of a sweep's images, or its texts, for the report's gallery."""
    from orchestrator.errors import DataError
    from orchestrator.runtime.folders import SweepFolder
    from orchestrator.runtime.process_cache import open_examples
    from orchestrator.spec.parts import modality_of

    examples = open_examples(folder / "data")
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
