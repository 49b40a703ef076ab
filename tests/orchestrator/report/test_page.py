"""The page: whole, safe, small, and never stopped by what is missing."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser

import pytest

from orchestrator.errors import SpecError
from orchestrator.report import write_report
from orchestrator.report.gallery import mistakes
from orchestrator.report.learning_curves import learning_curves
from orchestrator.report.markup import VOID
from orchestrator.report.pareto import pareto
from orchestrator.report.reading import read_sweep
from orchestrator.spec.record import Record

NASTY = "</script><img src=x onerror=alert(1)>\"'`é漢‮"


class Outline(HTMLParser):
    """What a browser would see: elements, their attributes, and that all are closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(folder, **options) -> str:
    return write_report(folder, **options).read_text(encoding="utf-8")


def test_the_forecast_stands_beside_what_came(build_sweep):
    words = [" ".join(word.split()) for word in Outline(page_of(build_sweep())).words]
    words = [word for word in words if word]
    assert "The sweep took 1.16 times its forecast" in words
    for name, forecast, actual in (
        ("wall time", "25 min 00 s", "28 min 54 s"),
        ("peak memory", "2.24 GiB", "2.42 GiB"),
        ("feature", "296 MiB", "286 MiB"),
    ):
        assert words[words.index(name) :][:3] == [name, forecast, actual]


def test_every_record_is_on_the_leaderboard(build_sweep):
    folder = build_sweep()
    tags = Outline(page_of(folder)).tags
    rows = {a["data-t"] for tag, a in tags if tag == "tr" and "data-t" in a}
    paths = folder.glob("trials/*/record.json")
    ids = {Record.model_validate_json(path.read_bytes()).trial for path in paths}
    assert len(ids) == 24
    assert rows == ids


def test_the_page_fetches_nothing(build_sweep, thumbnail):
    page = page_of(build_sweep(uri="https://bucket/{split}/{example}.png"), preview=thumbnail)
    fetching = {"src", "srcset", "poster", "data", "action", "formaction", "background"}
    outline = Outline(page)
    for tag, attributes in outline.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "use", "image"}
        for key in fetching & attributes.keys():
            assert attributes[key].startswith("data:image/")
        assert attributes.get("href", "#").startswith("#")
    code = "".join(re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", page, re.DOTALL))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttp|import\(", code)
    policies = [a["content"] for _, a in outline.tags if "http-equiv" in a]
    assert policies[0].startswith("default-src 'none'; script-src 'sha256-")


def test_what_people_wrote_stays_text(build_sweep):
    folder = build_sweep(
        n_trials=6, labels=(NASTY, "b"), name=f"x{NASTY}", uri=NASTY + "{split}{example}"
    )
    board = json.loads((folder / "leaderboard.json").read_text())
    board["rows"][0] |= {"reason": NASTY, "backbone": NASTY, "searched": {NASTY: NASTY}}
    (folder / "leaderboard.json").write_text(json.dumps(board))
    outline = Outline(page_of(folder))
    assert sum(tag == "script" for tag, _ in outline.tags) == 1
    assert not any(tag == "img" for tag, _ in outline.tags)
    assert not any(key.startswith("on") for _, attributes in outline.tags for key in attributes)
    assert any(NASTY in words for words in outline.words)


def test_labels_that_utf8_cannot_hold_do_not_stop_the_page(build_sweep):
    folder = build_sweep(n_trials=0)
    sweep = json.loads((folder / "sweep.json").read_text())
    sweep["data"]["counts"]["train"]["\ud800"] = 3
    (folder / "sweep.json").write_text(json.dumps(sweep))
    assert "How it was run" in page_of(folder)


@pytest.mark.parametrize(
    "recipe",
    [
        {"n_trials": 0},
        {"n_trials": 1},
        {"n_trials": 5, "all_diverged": True},
        {"n_trials": 8, "metric": "log_loss", "mode": "min"},
        {"n_trials": 6, "n_validation": 1, "n_test": 1, "metric": "accuracy"},
        {
            "n_trials": 8,
            "kind": "image-multilabel-classification",
            "labels": ("a", "b", "c"),
        },
        {
            "n_trials": 6,
            "search": [
                {"strategy": "partial", "backbone": "m", "backbone_lr": {"log": [1e-5, 1e-3]}}
            ],
        },
    ],
    ids=lambda recipe: "-".join(map(str, recipe.values()))[:40],
)
def test_every_kind_of_sweep_has_a_page_with_all_its_parts(build_sweep, recipe):
    outline = Outline(page_of(build_sweep(**recipe)))
    ids = {attributes.get("id") for _, attributes in outline.tags}
    parts = {"headline", "leaderboard", "search", "cost", "learning", "winner", "data"}
    assert parts | {"provenance"} <= ids
    assert not any(re.search(r"\bnan\b|\binf\b", w, re.I) for w in _drawn(outline))


def _drawn(outline: Outline) -> list[str]:
    """Attributes that place things: a NaN there draws nothing and says nothing."""
    places = {"d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "transform", "width", "height"}
    return [a[k] or "" for _, a in outline.tags for k in places & a.keys()]


@pytest.mark.parametrize(
    "missing", ["plan.json", "test.json", "test.arrow", "leaderboard.json", "trials", "baseline"]
)
def test_a_missing_part_is_left_out_and_nothing_else(build_sweep, missing):
    folder = build_sweep(n_trials=10)
    if missing == "baseline":
        board = json.loads((folder / "leaderboard.json").read_text())
        (folder / "leaderboard.json").write_text(json.dumps(board | {"baseline": None}))
    elif missing == "trials":
        for path in folder.glob("trials/*/*"):
            path.unlink()
    else:
        (folder / missing).unlink()
    page = page_of(folder)
    assert page.count("data-tip=") == 10
    assert ("No scratch baseline ran" in page) == (missing in {"baseline", "leaderboard.json"})


@pytest.mark.parametrize("name", ["plan.json", "test.json", "leaderboard.json"])
@pytest.mark.parametrize(
    "content", ["{", "[]", "null", '{"rows": [3], "metrics": 1, "shared": [1]}']
)
def test_damaged_files_are_noted_or_passed_over(build_sweep, name, content):
    folder = build_sweep(n_trials=4)
    (folder / name).write_text(content)
    assert ("Not everything could be read" in page_of(folder)) >= (content == "{")


def test_damaged_records_and_predictions_are_noted(build_sweep):
    folder = build_sweep(n_trials=4)
    winner = read_sweep(folder).winner
    (folder / "trials" / winner.id / "record.json").write_text('{"trial": 1}')
    (folder / "test.arrow").write_bytes(b"no arrow")
    page = page_of(folder)
    assert f"The record of trial {winner.id} is unreadable" in page
    assert "test.arrow is not a readable Arrow file" in page


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"no sweep\.json"):
        write_report(tmp_path)


def test_writing_leaves_one_file_and_replaces_the_last_one(build_sweep):
    folder = build_sweep(n_trials=2)
    before = {path.name for path in folder.iterdir()}
    assert write_report(folder) == write_report(folder) == folder / "report.html"
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}


def test_large_sweeps_stay_small_and_quick_and_say_what_they_leave_out(build_sweep):
    folder = build_sweep(
        n_trials=500,
        labels=tuple(f"class {i}" for i in range(200)),
        n_validation=60,
        n_test=600,
    )
    start = time.process_time()
    page = page_of(folder)
    assert time.process_time() - start < 12
    assert len(page.encode()) < 5_000_000
    assert page.count("data-tip=") == 500
    assert "240 of 500 trials are drawn" in page
    assert "The 16 most confused of 200 classes" in page


def test_pictures_are_embedded_until_they_would_be_too_many(build_sweep, thumbnail):
    folder = build_sweep(n_trials=3)
    small = page_of(folder, preview=thumbnail)
    assert small.count("data:image/png;base64,") == 24
    huge = page_of(folder, preview=lambda split, example: thumbnail(split, example) * 40)
    assert 0 < huge.count("data:image/png;base64,") < 24
    assert len(huge) < 5_000_000
    none = page_of(folder, preview=lambda split, example: None)
    assert "no picture" in none


def test_thumbnails_are_asked_for_the_split_and_the_example_of_the_mistake(build_sweep):
    folder = build_sweep(n_trials=3)
    asked = []
    page_of(folder, preview=lambda *key: asked.append(key))
    worst, n_wrong = mistakes(read_sweep(folder).predictions)
    assert asked == [("test", mistake.example) for mistake in worst]
    assert n_wrong >= len(worst)
    assert [m.prob for m in worst] == sorted((m.prob for m in worst), reverse=True)
    assert all(m.predicted != m.true for m in worst)


def test_every_chart_has_a_title_and_words_for_those_who_cannot_see_it(build_sweep):
    outline = Outline(page_of(build_sweep()))
    charts = [a for tag, a in outline.tags if tag == "svg" and a.get("aria-hidden") != "true"]
    assert len(charts) > 12
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in charts)
    figures = sum(tag == "figure" for tag, _ in outline.tags)
    assert figures == sum(tag == "h3" for tag, _ in outline.tags)


def test_axes_follow_the_courses_of_the_search(build_sweep):
    view = read_sweep(build_sweep(n_trials=8))
    courses = {p: view.course_of(p) for p in ("backbone_lr", "label_smoothing", "unfreeze")}
    assert courses == {"backbone_lr": "log", "label_smoothing": "linear", "unfreeze": "choice"}


def test_charts_draw_the_variants_that_the_control_offers(build_sweep):
    view = read_sweep(build_sweep(n_trials=12))
    assert pareto(view).count("data-variant") == 7
    assert learning_curves(view).count("data-variant") == 6
