from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.manifest import (
    FILE_NAMES,
    FORMAT_VERSION,
    REQUIRED_FILES,
    parse_manifest,
    render,
)
from orchestrator.errors import BundleError, IntegrityError, OrchestratorError
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.record import Record

ALL_FILES = ("bundle.json", *REQUIRED_FILES)


def flip(path: Path, position: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def edit_manifest(folder: Path, change: Callable[[dict], None], *, reseal: bool) -> None:
    """What an attacker who knows the format can do: change bundle.json and its digest with it."""
    content = json.loads((folder / "bundle.json").read_bytes())
    change(content)
    if reseal:
        content.pop("digest", None)
        content["digest"] = digest_of(content)
    (folder / "bundle.json").write_bytes(render(content))


@pytest.fixture(scope="module")
def opened_paths() -> list[Path]:
    """Every path that this process opens from now on; an audit hook cannot be taken off again."""
    paths: list[Path] = []

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            paths.append(Path(arguments[0]))

    sys.addaudithook(watch)
    return paths


def test_an_untouched_bundle_opens_and_tells_what_it_is(
    plain: Bundle, experiment: Experiment, record: Record
) -> None:
    bundle = open_bundle(str(plain.path))
    assert bundle == plain
    assert bundle.labels == experiment.task.labels
    assert bundle.task == experiment.task
    assert bundle.input == experiment.input
    assert bundle.scores.validation.metrics == record.validation
    assert bundle.experiment() == experiment
    assert bundle.record() == record
    assert bundle.read("MODEL_CARD.md") == b"# A card\n"


@pytest.mark.parametrize("position", [0, 0.5, -1])
@pytest.mark.parametrize("name", ALL_FILES)
def test_a_flipped_bit_in_any_file_is_refused_by_name(
    plain: Bundle, name: str, position: float
) -> None:
    size = (plain.path / name).stat().st_size
    flip(plain.path / name, int(position * size) if position >= 0 else size - 1)
    with pytest.raises((IntegrityError, BundleError), match=re.escape(name)):
        open_bundle(plain.path)


def test_no_byte_of_the_manifest_can_change(plain: Bundle) -> None:
    original = (plain.path / "bundle.json").read_bytes()
    for position in range(len(original)):
        for mask in (0x01, 0x2A):  # 0x2A turns a space into a line break, which JSON allows
            changed = bytearray(original)
            changed[position] ^= mask
            with pytest.raises((IntegrityError, BundleError), match=r"bundle\.json"):
                parse_manifest(bytes(changed))


def test_a_hundred_random_tamperings_are_refused(write_plain, tmp_path: Path) -> None:
    rng = random.Random(0)
    for case in range(100):
        folder = write_plain(tmp_path / str(case)).path
        path = folder / rng.choice(ALL_FILES)
        content = path.read_bytes()
        cut = rng.randrange(len(content))
        path.write_bytes(
            rng.choice([content[:cut], content + b"\n", content[:cut] + b"\0" + content[cut:], b""])
        )
        with pytest.raises(OrchestratorError):
            open_bundle(folder)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_missing_file_is_named(plain: Bundle, name: str) -> None:
    (plain.path / name).unlink()
    with pytest.raises(IntegrityError, match=f"{re.escape(name)}.*cannot be read"):
        open_bundle(plain.path)


@pytest.mark.parametrize("name", ["evil.pkl", "model.onnx", "tokenizer/vocab.txt", ".hidden"])
def test_a_file_that_the_manifest_does_not_name_is_refused(plain: Bundle, name: str) -> None:
    (plain.path / name).parent.mkdir(exist_ok=True)
    (plain.path / name).write_bytes(b"")
    with pytest.raises(IntegrityError, match=f"{re.escape(name.split('/')[0])}.*not named"):
        open_bundle(plain.path)


def test_all_faults_are_listed_at_once(plain: Bundle) -> None:
    (plain.path / "record.json").unlink()
    (plain.path / "extra").touch()
    flip(plain.path / "model.safetensors", 3)
    with pytest.raises(IntegrityError) as caught:
        open_bundle(plain.path)
    for name in ("record.json", "extra", "model.safetensors"):
        assert name in str(caught.value)


def test_an_edited_manifest_is_refused(plain: Bundle) -> None:
    edit_manifest(plain.path, lambda m: m["task"]["labels"].reverse(), reseal=False)
    with pytest.raises(IntegrityError, match=r"bundle\.json.*edited"):
        open_bundle(plain.path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "a/../../secret",
        "..\\secret",
        "%2e%2e/secret",
        "model.safetensors\0",
        "MODEL.safetensors",
        "ｍodel.safetensors",
        "x" * 4096,
        "weights.pkl",
        "",
        ".",
        "bundle.json",
    ],
)
def test_only_known_file_names_may_be_named_and_nothing_else_is_opened(
    plain: Bundle, name: str, opened_paths: list[Path]
) -> None:
    def name_it(content: dict) -> None:
        content["files"][name] = {"sha256": "0" * 64, "bytes": 0}

    edit_manifest(plain.path, name_it, reseal=True)
    opened_paths.clear()
    with pytest.raises(BundleError, match="files"):
        open_bundle(plain.path)
    assert opened_paths == [plain.path / "bundle.json"]


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_link_is_refused_even_if_it_leads_to_the_right_bytes(
    plain: Bundle, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "elsewhere"
    (plain.path / name).rename(target)
    (plain.path / name).symlink_to(target)
    with pytest.raises(IntegrityError, match=f"{re.escape(name)}: is a link"):
        open_bundle(plain.path)


def test_a_bundle_may_be_reached_through_a_link(plain: Bundle, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(plain.path)
    assert open_bundle(tmp_path / "current").path == plain.path.resolve()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ALL_FILES)
def test_a_pipe_or_folder_in_place_of_a_file_is_refused_without_waiting(
    plain: Bundle, name: str, make: Callable[[Path], None]
) -> None:
    (plain.path / name).unlink()
    make(plain.path / name)
    with pytest.raises(IntegrityError, match=f"{re.escape(name)}: is not a regular file"):
        open_bundle(plain.path)


def test_a_newer_format_says_what_to_do(plain: Bundle) -> None:
    edit_manifest(
        plain.path, lambda m: m.update(format_version=FORMAT_VERSION + 1, surprise=1), reseal=True
    )
    with pytest.raises(BundleError, match=f"is newer than {FORMAT_VERSION}.*Update"):
        open_bundle(plain.path)


@pytest.mark.parametrize("content", [b"{}", b"[]", b'"text"', b'{"format": "else"}'])
def test_json_of_another_kind_is_no_bundle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match="no bundle"):
        open_bundle(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[" * 100_000, b"NaN", b'"\\ud800"', b"\x80\x04K."]
)
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises((IntegrityError, BundleError), match=r"bundle\.json"):
        open_bundle(tmp_path)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no bundle\.json"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="is not a folder"):
        open_bundle(tmp_path / "nowhere")


def test_what_changes_after_opening_is_refused_when_it_is_read(plain: Bundle) -> None:
    flip(plain.path / "model.safetensors", 0)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        plain.read("model.safetensors")
    (plain.path / "record.json").write_bytes(b"longer" * 1000)
    with pytest.raises(IntegrityError, match=r"record\.json"):
        plain.record()


def test_reading_a_file_that_the_bundle_lacks_says_which_it_has(plain: Bundle) -> None:
    assert "model.onnx" in FILE_NAMES
    with pytest.raises(BundleError, match=r"no model\.onnx, only .*model\.safetensors"):
        plain.read("model.onnx")


def test_opening_reading_and_refusing_import_no_torch(plain: Bundle) -> None:
    script = """
import sys
import orchestrator.bundle.locating, orchestrator.bundle.model_card, orchestrator.bundle.predictor
from orchestrator.bundle.bundle import open_bundle
from orchestrator.errors import IntegrityError
bundle = open_bundle(sys.argv[1])
bundle.labels, bundle.input, bundle.task, bundle.scores, bundle.experiment(), bundle.record()
path = bundle.path / "model.safetensors"
path.write_bytes(b"x" + path.read_bytes()[1:])
try:
    open_bundle(sys.argv[1])
except IntegrityError:
    heavy = {"torch", "torchvision", "timm", "safetensors", "mlflow", "ray", "pickle5"}
    sys.exit(f"imported: {heavy & set(sys.modules)}" if heavy & set(sys.modules) else 0)
sys.exit("was not refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(plain.path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
