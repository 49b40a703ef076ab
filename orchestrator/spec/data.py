"""Where the labelled examples are, as data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from orchestrator.spec.frozen import Frozen

SplitFraction = Annotated[float, Field(gt=0, lt=1)]


class DataSpec(Frozen):
    """The splits of a data set, each a location or, for validation, a share of the training data.

    A location is a class-per-folder tree, a CSV, Parquet or JSONL manifest, a folder written by
    `datasets.save_to_disk`, a data set on the hub (`hub:owner/name`), or an fsspec URI to one of
    the file kinds. Words are tagged in a CoNLL file, or in a table of lists (`tokens`, `tags`);
    questions are asked in a SQuAD file, or in a table of `question`, `context` and `answers`.
    """

    train: str
    validation: SplitFraction | str = 0.15
    test: str | None = None
    input_column: str | None = Field(
        None,
        description="manifest column with the path, bytes, text, words or context; found by name "
        "when not given",
    )
    label_column: str | None = Field(
        None,
        description="manifest column with the label, labels, tags or answers; found by name when "
        "not given",
    )
    label_separator: str = Field(
        "|", min_length=1, description="between the labels of a multi-label text cell"
    )
    bad_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.02, description="share of undecodable files above which the data is refused"
    )
