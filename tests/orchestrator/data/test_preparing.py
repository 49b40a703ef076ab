from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.data.examples import Examples
from orchestrator.data.preparing import audit_data, prepare_data
from orchestrator.errors import DataError
from orchestrator.spec.data import DataSpec

CLASSES = {"cat": range(12), "dog": range(12, 24)}


def prepare(tmp_path, train, *, task="image-classification", seed=0, progress=None, **spec):
    spec = DataSpec(
        train=str(train), **{k: str(v) if isinstance(v, Path) else v for k, v in spec.items()}
    )
    return prepare_data(spec, task=task, seed=seed, cache=tmp_path / "cache", progress=progress)


def findings(audit, kind):
    return [fault for fault in audit.faults if fault.kind == kind]


def test_train_and_validation_share_the_images_of_a_tree(make_tree, tmp_path):
    examples = prepare(tmp_path, make_tree(CLASSES)).examples
    train, validation = examples.indices("train"), examples.indices("validation")
    assert sorted([*train, *validation]) == list(range(24))
    assert examples.labels == ("cat", "dog")
    assert not examples.multilabel
    assert {0, 1} == set(examples.targets()[train]) == set(examples.targets()[validation])
    for i in range(24):
        path = Path(examples.uri(i))
        assert path.parent.name == examples.labels[examples.targets()[i]]
        assert (np.asarray(examples.image(i)) == np.asarray(Image.open(path))).all()


def every_format(root: Path, tmp_path: Path) -> dict[str, str]:
    """The images of a tree again as CSV, JSONL, Parquet, a saved data set, and behind a URI."""
    files = sorted(root.rglob("*.png"))
    paths, labels = [str(f) for f in files], [f.parent.name for f in files]
    rows = [{"path": path, "label": label} for path, label in zip(paths, labels, strict=True)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, reversed(rows))))
    lines = [f"{os.path.relpath(row['path'], tmp_path)},{row['label']}" for row in rows]
    (tmp_path / "m.csv").write_text("\n".join(["path,label", *lines]))
    data = pa.table({"image": [f.read_bytes() for f in files], "label": labels})
    pq.write_table(data, tmp_path / "m.parquet", row_group_size=5)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    saved = datasets.Dataset.from_dict({"image": paths, "label": labels}, features)
    saved.save_to_disk(tmp_path / "saved")
    fs = fsspec.filesystem("memory")
    for file in files:
        fs.pipe(f"/every/{file.parent.name}/{file.name}", file.read_bytes())
    places = {name: str(tmp_path / name) for name in ("m.jsonl", "m.csv", "m.parquet", "saved")}
    return {"tree": str(root), **places, "uri": "memory://every"}


def test_every_format_of_the_same_images_has_the_same_digest_and_rows(make_tree, tmp_path):
    prepared = {
        name: prepare(tmp_path, place).examples
        for name, place in every_format(make_tree(CLASSES), tmp_path).items()
    }
    tree = prepared.pop("tree")
    for name, examples in prepared.items():
        assert examples.digest == tree.digest, name
        assert (examples.targets() == tree.targets()).all()
        for i in range(len(tree)):
            assert examples.content(i) == tree.content(i)
            assert (np.asarray(examples.image(i)) == np.asarray(tree.image(i))).all()


def test_the_digest_ignores_places_names_and_file_format_and_nothing_else(make_tree, tmp_path):
    one = make_tree(CLASSES)
    digest = prepare(tmp_path, one).examples.digest
    two = tmp_path / "two"
    shutil.copytree(one, two)
    Image.open(two / "cat/3.png").save(two / "cat/z.bmp")
    (two / "cat/3.png").unlink()
    moved = prepare(tmp_path, two).examples
    assert moved.digest == digest
    assert all(str(two) in moved.uri(i) for i in range(24))
    assert prepare(tmp_path, one, seed=1).examples.digest != digest
    (two / "cat/4.png").rename(two / "dog/4.png")
    assert prepare(tmp_path, two).examples.digest != digest


def test_bytes_of_several_tables_are_kept_beside_the_index(tmp_path, picture):
    for name, seeds in {"train": range(10), "test": range(20, 24)}.items():
        data = [png(picture(seed)) for seed in seeds]
        table = pa.table({"image": data, "label": [str(seed % 2) for seed in seeds]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    examples = prepare(
        tmp_path, tmp_path / "train.parquet", test=tmp_path / "test.parquet"
    ).examples
    tests = examples.indices("test")
    assert sorted(examples.uri(i) for i in tests) == [
        f"{tmp_path}/test.parquet#{k}" for k in range(4)
    ]
    for i in tests:
        row = int(examples.uri(i).rpartition("#")[2])
        assert examples.read_bytes(i) == png(picture(20 + row))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_multilabel_targets_are_a_matrix(tmp_path, picture):
    cells = ["b|a", "a", "", "b"] * 5
    for i in range(20):
        picture(i).save(tmp_path / f"{i}.png")
    lines = [f"{i}.png,{cell}" for i, cell in enumerate(cells)]
    (tmp_path / "m.csv").write_text("\n".join(["path,labels", *lines]))
    prepared = prepare(tmp_path, tmp_path / "m.csv", task="image-multilabel-classification")
    examples = prepared.examples
    assert examples.targets().dtype == np.uint8
    assert examples.labels == ("a", "b")
    for i, row in enumerate(examples.targets().tolist()):
        cell = cells[int(Path(examples.uri(i)).stem)]
        assert row == [int("a" in cell), int("b" in cell)]
    assert findings(prepared.audit, "unlabelled")[0].count == 5


def test_undecodable_files_are_quarantined_with_path_and_reason(make_tree, tmp_path):
    root = make_tree(CLASSES)
    (root / "cat/empty.png").write_bytes(b"")
    (root / "dog/text.jpg").write_text("no image")
    (root / "dog/cut.png").write_bytes((root / "dog/12.png").read_bytes()[:80])
    (root / "dog/gone.png").symlink_to(tmp_path / "nowhere.png")
    audit = prepare(tmp_path, root, bad_fraction=0.2).audit
    reasons = {Path(bad.uri).name: bad.reason for bad in audit.quarantined}
    assert reasons.keys() == {"empty.png", "text.jpg", "cut.png", "gone.png"}
    assert reasons["empty.png"] == "the file is empty"
    assert "known format" in reasons["text.jpg"]
    assert "No such file" in reasons["gone.png"]
    assert sum(audit.images.values()) == 24
    assert findings(audit, "undecodable")[0].severity == "warning"


def test_too_many_undecodable_files_stop_with_exit_code_3(make_tree, tmp_path):
    root = make_tree(CLASSES)
    (root / "cat/empty.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"1 of 25 images \(4\.0%\) .*bad_fraction 0\.02.*empty\.png"
    ) as caught:
        prepare(tmp_path, root)
    assert caught.value.exit_code == 3


def test_all_errors_are_told_at_once_and_as_findings(make_tree, tmp_path):
    root = make_tree({"cat": range(12), "dog": [20]})
    test = make_tree({"cat": [30], "bird": [31]}, "test")
    (root / "cat/empty.png").write_bytes(b"")
    spec = DataSpec(train=str(root), test=str(test))
    audit = audit_data(spec, task="image-classification", seed=0, cache=tmp_path / "cache")
    assert {f.kind for f in audit.errors} == {"undecodable", "too-few-images", "unknown-label"}
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, root, test=test)
    assert len(str(caught.value).splitlines()) == 3
    assert "'bird'" in str(caught.value)
    assert "'dog': 1" in str(caught.value)


def test_copies_count_once_towards_the_images_a_class_needs(make_tree, tmp_path):
    root = make_tree({"cat": range(12), "dog": [20]})
    shutil.copy(root / "dog/20.png", root / "dog/copy.png")
    with pytest.raises(DataError, match="'dog': 1"):
        prepare(tmp_path, root)


def test_one_class_is_nothing_to_learn(make_tree, tmp_path):
    with pytest.raises(DataError, match="same label"):
        prepare(tmp_path, make_tree({"cat": range(5)}))


def test_one_image_a_class_is_enough_when_validation_is_a_path(make_tree, tmp_path):
    train, validation = make_tree({"a": [0], "b": [1]}), make_tree({"a": [2]}, "validation")
    audit = prepare(tmp_path, train, validation=validation).audit
    assert audit.classes == {"a": {"train": 1, "validation": 1}, "b": {"train": 1, "validation": 0}}
    assert findings(audit, "missing-class")[0].items == ("'b'",)
    assert findings(audit, "few-images")[0].count == 2


def test_an_empty_split_is_an_error(make_tree, tmp_path):
    test = make_tree({"cat": [90]}, "test")
    (test / "cat/90.png").write_bytes(b"")
    with pytest.raises(DataError, match="no usable image is left in test"):
        prepare(tmp_path, make_tree(CLASSES), test=test, bad_fraction=0.5)


def test_training_copies_of_test_images_are_left_out(make_tree, tmp_path):
    train, test = make_tree(CLASSES), make_tree({"cat": [0, 1, 50], "dog": [12, 60]}, "test")
    Image.open(train / "cat/0.png").save(train / "cat/other.bmp")
    prepared = prepare(tmp_path, train, test=test)
    (leakage,) = findings(prepared.audit, "leakage")
    assert leakage.severity == "warning"
    assert leakage.count == 3
    assert "4 training copies are left out" in leakage.message
    assert prepared.audit.images["test"] == 5
    assert prepared.audit.images["train"] + prepared.audit.images["validation"] == 25 - 4
    contents = {
        s: {prepared.examples.content(i) for i in prepared.examples.indices(s)}
        for s in ("train", "validation", "test")
    }
    assert not contents["test"] & (contents["train"] | contents["validation"])


def test_an_image_in_validation_and_test_is_reported_and_kept(make_tree, tmp_path):
    shared = {"cat": [70], "dog": [71]}
    audit = prepare(
        tmp_path,
        make_tree(CLASSES),
        validation=make_tree(shared, "v"),
        test=make_tree(shared, "t"),
    ).audit
    assert findings(audit, "evaluation-overlap")[0].count == 2
    assert audit.images == {"train": 24, "validation": 2, "test": 2}


def test_contradicting_training_copies_are_left_out_and_evaluation_is_not(make_tree, tmp_path):
    train = make_tree({"cat": [*CLASSES["cat"], 100], "dog": [*CLASSES["dog"], 100]})
    test = make_tree({"cat": [101], "dog": [101, 102]}, "test")
    prepared = prepare(tmp_path, train, test=test)
    (conflict,) = findings(prepared.audit, "label-conflict")
    assert conflict.count == 2
    assert "2 training copies are left out" in conflict.message
    assert any("[cat]" in item and "[dog]" in item for item in conflict.items)
    assert prepared.audit.images["test"] == 3
    assert sum(prepared.audit.images.values()) == 24 + 3


def test_copies_within_train_are_noted_and_stay_on_one_side(make_tree, tmp_path):
    root = make_tree(CLASSES)
    for file in list((root / "cat").glob("*.png")):
        shutil.copy(file, root / "cat" / f"copy-{file.name}")
    prepared = prepare(tmp_path, root, validation=0.4)
    assert sum(f.count for f in findings(prepared.audit, "duplicates")) == 12
    sides = {}
    for split in ("train", "validation"):
        for i in prepared.examples.indices(split):
            assert sides.setdefault(prepared.examples.content(i), split) == split


def test_unequal_classes_are_met_with_advice(make_tree, tmp_path):
    audit = prepare(tmp_path, make_tree({"good": range(40), "bad": range(40, 46)})).audit
    (imbalance,) = findings(audit, "imbalance")
    assert "f1_macro" in imbalance.message
    assert "class_weights: balanced" in imbalance.message


def test_labels_that_differ_by_case_stay_two_and_are_reported(make_tree, tmp_path):
    prepared = prepare(tmp_path, make_tree({"Cat": range(5), "cat": range(5, 10)}))
    assert prepared.examples.labels == ("Cat", "cat")
    assert findings(prepared.audit, "case-variants")[0].items == ("Cat / cat",)


def test_an_audit_is_json_and_reads_as_lines(make_tree, tmp_path):
    audit = prepare(tmp_path, make_tree(CLASSES, "a\ntree")).audit
    assert type(audit).model_validate(json.loads(json.dumps(audit.to_json()))) == audit
    assert len(audit.lines()) == len(audit.faults)


def test_a_second_start_decodes_nothing_and_a_grown_set_only_what_is_new(make_tree, tmp_path):
    root = make_tree(CLASSES)
    first = prepare(tmp_path, root)
    atimes = {file: file.stat() for file in root.rglob("*.png")}
    for file, status in atimes.items():  # same size and time, other bytes: read only if decoded
        file.write_bytes(bytes(status.st_size))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    seen: list[tuple[int, int]] = []
    second = prepare(tmp_path, root, progress=lambda done, total: seen.append((done, total)))
    assert second.audit == first.audit
    assert second.examples.digest == first.examples.digest
    assert seen[-1] == (24, 24)
    (root / "cat/new.png").write_bytes(b"")
    grown = prepare(tmp_path, root, bad_fraction=0.1)
    assert [Path(bad.uri).name for bad in grown.audit.quarantined] == ["new.png"]


def test_a_changed_file_is_decoded_again(make_tree, tmp_path, picture):
    root = make_tree(CLASSES)
    first = prepare(tmp_path, root).examples.digest
    picture(999).save(root / "cat/0.png")
    assert prepare(tmp_path, root).examples.digest != first


def test_a_damaged_cache_is_no_obstacle(make_tree, tmp_path):
    root = make_tree(CLASSES)
    digest = prepare(tmp_path, root).examples.digest
    for file in (tmp_path / "cache/scans").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert prepare(tmp_path, root).examples.digest == digest


def test_an_interrupted_scan_keeps_what_it_has_done(make_tree, tmp_path):
    root = make_tree({"a": range(200), "b": range(200, 400)})

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, root, progress=interrupt)
    for file in list((root / "a").iterdir()):  # the first block; undecodable if read again
        status = file.stat()
        file.write_bytes(bytes(status.st_size))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert prepare(tmp_path, root).audit.quarantined == ()


def test_the_prepared_folder_reopens_by_itself(make_tree, tmp_path):
    examples = prepare(tmp_path, make_tree(CLASSES)).examples
    assert Examples.open(examples.folder).digest == examples.digest


def test_progress_rises_to_the_number_of_images_of_all_splits(make_tree, tmp_path):
    test = make_tree({"cat": [50], "dog": [51]}, "test")
    seen: list[tuple[int, int]] = []
    prepare(tmp_path, make_tree(CLASSES), test=test, progress=lambda *counts: seen.append(counts))
    assert seen == [(24, 26), (26, 26)]


def test_damaged_files_of_every_kind_among_many_never_stop_the_audit(make_tree, tmp_path):
    rng = np.random.default_rng(0)
    root = make_tree({"cat": range(200), "dog": range(200, 400)})
    good = (root / "cat/0.png").read_bytes()
    for k in range(40):
        kinds = (b"", good[: len(good) // 2], b"text", rng.bytes(200), good[:8] + rng.bytes(99))
        (root / "cat" / f"bad{k}.jpg").write_bytes(kinds[k % len(kinds)])
    audit = prepare(tmp_path, root, bad_fraction=0.1).audit
    assert {Path(bad.uri).name for bad in audit.quarantined} == {f"bad{k}.jpg" for k in range(40)}
    assert all(bad.reason for bad in audit.quarantined)
    assert sum(audit.images.values()) == 400


def test_paths_that_no_file_can_have_are_quarantined(make_tree, tmp_path):
    root = make_tree(CLASSES)
    rows = [f"{file},{file.parent.name}" for file in root.rglob("*.png")]
    odd = ["a\0b.png,cat", f"{'x' * 5000}.png,cat", "nosuch://b/c.png,dog", "\u202e🙂.png,dog"]
    (tmp_path / "m.csv").write_text("\n".join(["path,label", *rows, *odd]), encoding="utf-8")
    audit = prepare(tmp_path, tmp_path / "m.csv", bad_fraction=0.2).audit
    assert [bad.reason.startswith("cannot be read: ") for bad in audit.quarantined] == [True] * 4
    assert sum(audit.images.values()) == 24
