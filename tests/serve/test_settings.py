from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.errors import IntegrityError
from serve.pinning import fetched, pinned
from serve.settings import AppSettings
from tests.serve.material import COLOURS, plain_bundle

ONE = {"name": "cells", "bundle": "cells@champion"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "Cells"}, "does not match"),
        ({"min_replicas": 2}, "the second is at least the first"),
        ({"min_replicas": 0}, "Set own: true"),
        ({"device": "cuda"}, "Set own: true"),
        ({"max_replicas": 0, "min_replicas": 0, "own": True}, "at least 1"),
        ({"candidate": {"bundle": "cells/2", "share": 1.5}}, "less than or equal to 1"),
        ({"bundel": "x"}, "Extra inputs"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        AppSettings.model_validate({"endpoints": [{**ONE, **changes}]})


def test_names_are_distinct_and_there_is_at_least_one() -> None:
    for endpoints in ([], [ONE, ONE]):
        with pytest.raises(ValidationError):
            AppSettings.model_validate({"endpoints": endpoints})


def test_the_ingress_is_as_large_as_its_neediest_endpoint() -> None:
    many = {**ONE, "name": "a", "min_replicas": 2, "max_replicas": 4}
    own = {**ONE, "name": "b", "own": True, "min_replicas": 0, "max_replicas": 9}
    settings = AppSettings.model_validate({"endpoints": [ONE, many, own]})
    assert (settings.min_replicas, settings.max_replicas) == (2, 4)


def test_a_pin_is_one_bundle_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "colours"
    bundle = plain_bundle(folder, kind="image-classification", labels=COLOURS)
    pin = pinned(str(folder), name="colours", registry=None)
    assert (pin.digest, pin.version, pin.alias) == (bundle.digest, bundle.digest[:12], None)
    assert fetched(pin).digest == bundle.digest
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    plain_bundle(folder, kind="image-classification", labels=COLOURS, salt="another")
    with pytest.raises(IntegrityError, match="is to be served"):
        fetched(pin)
