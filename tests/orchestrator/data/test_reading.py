from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from orchestrator.data.reading import read_location
from orchestrator.errors import DataError
from orchestrator.spec.data import DataSpec


def read(location, tmp_path, *, multilabel=False, split="train", **spec):
    return read_location(
        str(location),
        DataSpec(train=str(location), **spec),
        split=split,
        task="image-multilabel-classification" if multilabel else "image-classification",
        cache=tmp_path / "cache",
    )


def labels_of(reading):
    return [row.labels for row in reading.rows]


def csv_of(tmp_path: Path, text: str, name: str = "m.csv", encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_a_tree_uses_direct_folders_as_classes_and_reports_the_rest(make_tree, tmp_path, picture):
    root = make_tree({"cat": [0], "dog": [1], "dog/puppies": [2], ".hidden": [3]})
    picture(4).save(root / "loose.png")
    picture(5).save(root / "cat" / ".hidden.png")
    (root / "cat" / "notes.xml").write_text("<a/>")
    (root / "bird").mkdir()
    reading = read(root, tmp_path)
    found = {(Path(row.uri).name, row.labels) for row in reading.rows}
    assert found == {("0.png", ("cat",)), ("1.png", ("dog",)), ("2.png", ("dog",))}
    assert {(f.kind, f.items) for f in reading.findings} == {
        ("loose-files", ("loose.png",)),
        ("empty-class", ("bird",)),
        ("other-files", ("1 x .xml",)),
    }


def test_class_folders_equal_in_nfc_are_one_class(make_tree, tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    reading = read(make_tree({composed: [0], decomposed: [1]}), tmp_path)
    assert labels_of(reading) == [(composed,), (composed,)]
    assert [f.kind for f in reading.findings] == ["spellings"]


def test_a_tree_without_class_folders_says_what_to_do(tmp_path, picture):
    root = tmp_path / "flat"
    root.mkdir()
    picture(0).save(root / "a.png")
    with pytest.raises(DataError, match="1 images lie in the folder itself"):
        read(root, tmp_path)
    (root / "metadata.csv").write_text("path,label\n")
    with pytest.raises(DataError, match=r"If metadata\.csv is the manifest, give its path"):
        read(root, tmp_path)


def test_a_tree_has_no_multilabel_form(make_tree, tmp_path):
    with pytest.raises(DataError, match="write a manifest"):
        read(make_tree({"a": [0]}), tmp_path, multilabel=True)


def test_paths_in_a_manifest_are_relative_to_it(tmp_path):
    path = csv_of(tmp_path, "path,label\nimages/a.png,x\n/abs/b.png,y\nmemory://c.png,z\n")
    uris = [row.uri for row in read(path, tmp_path).rows]
    assert uris == [str(tmp_path / "images/a.png"), "/abs/b.png", "memory://c.png"]


@pytest.mark.parametrize(
    "text",
    [
        "filename,class\na.png,0\nb.png,01\n",
        "\ufefffile_name,Label\r\na.png,0\r\n\r\nb.png,01\r\n",
        "image;tags\na.png;0\nb.png;01\n",
        'id,label,path\n"1,5",0,a.png\n2," 01 ",b.png\n',
    ],
)
def test_csv_columns_are_found_by_name_and_numbers_stay_text(text, tmp_path):
    reading = read(csv_of(tmp_path, text), tmp_path)
    assert labels_of(reading) == [("0",), ("01",)]
    assert [Path(row.uri).name for row in reading.rows] == ["a.png", "b.png"]


def test_the_spec_names_columns(tmp_path):
    path = csv_of(tmp_path, "a,b,label\nx.png,cat,1\n")
    reading = read(path, tmp_path, input_column="a", label_column="b")
    assert labels_of(reading) == [("cat",)]
    with pytest.raises(DataError, match=r"data.label_column 'c' is no column. It has a, b, label"):
        read(path, tmp_path, input_column="a", label_column="c")
    with pytest.raises(DataError, match="no column is named like an input column"):
        read(path, tmp_path)


def test_all_rows_without_a_label_are_named(tmp_path):
    path = csv_of(tmp_path, "path,label\na,x\nb,\nc,NaN\n,y\n")
    with pytest.raises(DataError, match=r"2 rows have no label: rows 1, 2; 1 rows have no input"):
        read(path, tmp_path)
    lines = [{"path": "a", "label": float("nan")}, {"path": "b", "label": None}, {"path": "c"}]
    path = csv_of(tmp_path, "\n".join(map(json.dumps, lines)), "m.jsonl")
    with pytest.raises(DataError, match="3 rows have no label"):
        read(path, tmp_path, label_column="label")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.csv", b"", "empty"),
        ("m.csv", b"path,label\na,b,c\n", "line 2: 3 cells where the header has 2"),
        ("m.csv", b"path,label\na,\xff\n", "not UTF-8"),
        ("m.csv", b'path,label\na,"b\n', "not readable as CSV"),
        ("m.jsonl", b"", "empty"),
        ("m.jsonl", b'{"path": 1', "line 1: not JSON"),
        ("m.jsonl", b"[1]", "line 1: list"),
        ("m.jsonl", b'{"path": 1, "label": "a"}', "a int for an input"),
        ("m.jsonl", b'{"path": "a", "label": ["a"]}', "list of labels; use a multilabel task"),
        ("m.parquet", b"PAR1", "not readable as Parquet"),
        ("m.json", b"{}", "is no manifest format"),
    ],
)
def test_an_unreadable_manifest_says_why(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read(tmp_path / name, tmp_path)


def test_multilabel_cells_are_lists_or_text_with_a_separator(tmp_path):
    expected = [("a", "b"), ("b",), ()]
    comma = csv_of(tmp_path, "path,labels\n1,b|a\n2, b |b|\n3,\n")
    assert labels_of(read(comma, tmp_path, multilabel=True)) == expected
    other = csv_of(tmp_path, "path,labels\n1,a b\n2,b\n3,\n", "s.csv")
    assert labels_of(read(other, tmp_path, multilabel=True, label_separator=" ")) == expected
    rows = [["b", "a"], ["b"], []]
    text = "\n".join(json.dumps({"path": str(i), "labels": r}) for i, r in enumerate(rows))
    assert labels_of(read(csv_of(tmp_path, text, "m.jsonl"), tmp_path, multilabel=True)) == expected
    pq.write_table(pa.table({"path": ["1", "2", "3"], "labels": rows}), tmp_path / "m.parquet")
    assert labels_of(read(tmp_path / "m.parquet", tmp_path, multilabel=True)) == expected


def test_an_indicator_vector_is_not_taken_for_names(tmp_path):
    path = csv_of(tmp_path, '{"path": "a", "labels": [0, 1, 0]}', "m.jsonl")
    with pytest.raises(DataError, match="vector of 0 and 1"):
        read(path, tmp_path, multilabel=True)


def test_numbers_in_typed_columns_become_plain_text(tmp_path):
    table = pa.table({"path": ["a", "b"], "label": pa.array([1.0, 0.5])})
    pq.write_table(table, tmp_path / "m.parquet")
    assert labels_of(read(tmp_path / "m.parquet", tmp_path)) == [("1",), ("0.5",)]


def test_a_saved_dataset_gives_class_names_and_the_asked_split(tmp_path, picture):
    features = datasets.Features(
        {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    split = datasets.Dataset.from_dict({"img": [picture(0), picture(1)], "kind": [1, 0]}, features)
    datasets.DatasetDict(train=split, test=split.select([0])).save_to_disk(tmp_path / "saved")
    assert labels_of(read(tmp_path / "saved", tmp_path)) == [("dog",), ("cat",)]
    assert labels_of(read(tmp_path / "saved", tmp_path, split="test")) == [("dog",)]
    with pytest.raises(DataError, match="no split 'validation'; it has train, test"):
        read(tmp_path / "saved", tmp_path, split="validation")


def test_a_saved_dataset_can_have_several_classes_an_image(tmp_path, picture):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "labels": datasets.List(datasets.ClassLabel(names=["cat", "dog"])),
        }
    )
    split = datasets.Dataset.from_dict(
        {"image": [picture(0)] * 2, "labels": [[1, 0], []]}, features
    )
    split.save_to_disk(tmp_path / "saved")
    assert labels_of(read(tmp_path / "saved", tmp_path, multilabel=True)) == [("cat", "dog"), ()]


def test_a_set_of_the_hub_is_read_at_its_configuration_and_split(tmp_path, monkeypatch):
    """From a folder in the hub's format, which `datasets` takes for the id from where it stands."""
    folder = tmp_path / "owner" / "cells"
    for name, labels in {"small": ["cat", "dog"], "large": ["cat"] * 3}.items():
        (folder / name).mkdir(parents=True)
        for split in ("train", "test"):
            rows = {
                "image": [b"1"] * len(labels),
                "label": labels if split == "train" else labels[::-1],
            }
            pq.write_table(pa.table(rows), folder / name / f"{split}.parquet")
    configurations = [
        {
            "config_name": name,
            "data_files": [{"split": s, "path": f"{name}/{s}.parquet"} for s in ("train", "test")],
        }
        for name in ("small", "large")
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configurations})}---\n")
    monkeypatch.chdir(tmp_path)
    assert labels_of(read("hub:owner/cells/small", tmp_path)) == [("cat",), ("dog",)]
    assert labels_of(read("hub:owner/cells/small", tmp_path, split="test")) == [("dog",), ("cat",)]
    assert len(labels_of(read("hub:owner/cells/large", tmp_path))) == 3
    monkeypatch.chdir(folder)
    assert len(labels_of(read("hub:large", tmp_path))) == 3, "an id without an owner"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"\['small', 'large'\].*hub:OWNER/NAME/CONFIGURATION"):
        read("hub:owner/cells", tmp_path)


def test_image_bytes_are_streamed_into_the_cache_once(tmp_path):
    table = pa.table({"image": [b"%d" % i * 1000 for i in range(300)], "label": ["a"] * 300})
    pq.write_table(table, tmp_path / "m.parquet")
    first = read(tmp_path / "m.parquet", tmp_path)
    written = first.blobs.stat().st_mtime_ns
    assert read(tmp_path / "m.parquet", tmp_path) == first
    assert first.blobs.stat().st_mtime_ns == written
    first.blobs.unlink()
    assert read(tmp_path / "m.parquet", tmp_path) == first
    assert first.blobs.exists()
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_tree_and_a_manifest_can_lie_behind_a_uri(tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe({"/set/tree/a/1.png": b"1", "/set/tree/b/2.png": b"2", "/set/tree/c/.x/3.png": b"3"})
    fs.pipe("/set/m.csv", b"path,label\ntree/a/1.png,a\ntree/b/2.png,b\n")
    tree = read("memory://set/tree", tmp_path)
    assert labels_of(tree) == [("a",), ("b",)]
    manifest = read("memory://set/m.csv", tmp_path)
    assert [fsspec.open(row.uri).open().read() for row in manifest.rows] == [b"1", b"2"]


@pytest.mark.parametrize("location", ["/nowhere", "memory://nowhere/m.csv"])
def test_a_location_that_does_not_exist_says_what_may_be_given(location, tmp_path):
    with pytest.raises(DataError, match=r"data\.train: .*nowhere.* does not exist\. Give a class"):
        read(location, tmp_path)


def test_a_scheme_without_a_driver_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="nosuch://bucket: cannot be reached"):
        read("nosuch://bucket", tmp_path)
