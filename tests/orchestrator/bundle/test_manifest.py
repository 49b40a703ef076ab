from __future__ import annotations

import pytest

from orchestrator.bundle.bundle import Bundle
from orchestrator.bundle.manifest import parse_manifest, render, sealed
from orchestrator.errors import BundleError
from orchestrator.spec.frozen import digest_of


def test_a_manifest_is_read_back_as_it_was_written(plain: Bundle) -> None:
    assert parse_manifest(render(plain.manifest.to_json())) == plain.manifest


def test_the_digest_depends_on_every_field(plain: Bundle) -> None:
    content = plain.manifest.to_json()
    digests = {
        sealed({**content, **change}).digest
        for change in (
            {},
            {"temperature": 1.5},
            {"threshold": 0.4},
            {"created_at": "2026-02-01T00:00:00Z"},
            {"versions": {"torch": "2.9.1"}},
        )
    }
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": {"name": "b", "weights": "default"}}, "'default' would be fetched"),
        ({"backbone": {"name": "b", "weights": "hub:a/b"}}, "'hub:a/b' would be fetched"),
        ({"created_at": "2026-01-31T12:00:00"}, "no time zone"),
        ({"created_at": "yesterday"}, "created_at"),
        ({"files": {}}, r"model\.safetensors, .* not named"),
        ({"temperature": 0}, "temperature"),
        ({"threshold": 1.5}, "threshold"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_an_impossible_value_is_named(plain: Bundle, change: dict, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        sealed({**plain.manifest.to_json(), **change})


def test_a_manifest_of_format_1_is_read(plain: Bundle) -> None:
    """It says nothing of model.onnx, and its digest covers what it says."""
    content = plain.manifest.to_json() | {"format_version": 1}
    for later in ("onnx", "without_onnx", "trunk", "latency", "digest"):
        del content[later]
    old = {**content, "digest": digest_of(content)}
    manifest = parse_manifest(render(old))
    assert (manifest.format_version, manifest.digest) == (1, old["digest"])
    assert (manifest.onnx, manifest.without_onnx) == (None, None)


def test_what_was_measured_is_not_content(plain: Bundle) -> None:
    report = {"opset": 20, "tolerance": 1e-3, "max_difference": 1e-7}
    content = plain.manifest.to_json()
    here = sealed({**content, "onnx": report})
    assert here.same_content(sealed({**content, "onnx": {**report, "max_difference": 2e-7}}))
    assert not here.same_content(sealed({**content, "onnx": {**report, "opset": 18}}))
    assert not here.same_content(plain.manifest)
    curve = {"cpu": "one", "cores": 1, "runtime": "onnx", "points": []}
    assert sealed({**content, "latency": curve}).same_content(plain.manifest)


def test_the_time_of_writing_is_not_content(plain: Bundle) -> None:
    content = plain.manifest.to_json()
    later = sealed({**content, "created_at": "2027-01-01T00:00:00+01:00"})
    other = sealed({**content, "temperature": 2.0})
    assert later.same_content(plain.manifest)
    assert not other.same_content(plain.manifest)
