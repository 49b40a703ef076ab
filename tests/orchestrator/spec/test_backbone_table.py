"""The table says what the libraries say, and answers without torch."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import pytest

from orchestrator.spec import backbone_table
from orchestrator.spec.backbone_table import LISTED, TABLE_PATH, backbone_names, facts_for

# Their shapes are computed through an LSTM, which takes half a minute on the meta device.
SLOW = {"sequencer2d_s", "sequencer2d_m", "sequencer2d_l"}
SAMPLE = random.Random(7).sample(sorted({*backbone_names()} - {*LISTED} - SLOW), 8)


@pytest.mark.parametrize("name", [*LISTED, *SAMPLE])
def test_a_row_is_what_the_library_says(name: str) -> None:
    from orchestrator.models.backbone_facts import facts_row

    assert facts_row(name) == _rows()[name]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_row_is_what_the_library_says() -> None:
    from orchestrator.models.backbone_facts import facts_row

    assert {name: facts_row(name) for name in backbone_names()} == _rows()


def test_the_recommended_names_come_first() -> None:
    assert backbone_names()[: len(LISTED)] == LISTED
    assert all(facts_for(name).best_for for name in LISTED)


def test_efficientnet_lite0_has_seven_stages() -> None:
    facts = facts_for("tf_efficientnet_lite0")

    assert (facts.n_stages, facts.feature_width, facts.library) == (7, 1280, "timm")
    assert facts.input.size == 224


def test_the_sources_of_a_backbone_are_told_by_its_name() -> None:
    assert facts_for("torchvision/resnet50").library == "torchvision"
    assert facts_for("resnet50_fpn").library == "orchestrator"
    assert facts_for("resnet50").library == "timm"


def test_most_of_timm_can_be_named() -> None:
    assert len(backbone_names()) > 1000


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        facts_for("resnet5o")


def test_the_table_is_read_in_milliseconds_and_once() -> None:
    times = []
    for _ in range(3):
        backbone_table._table.cache_clear()
        start = time.perf_counter()
        facts_for("resnet50")
        times.append(time.perf_counter() - start)

    assert min(times) < 0.03
    assert backbone_table._table() is backbone_table._table()


def test_the_table_needs_no_torch() -> None:
    code = (
        "import sys; from orchestrator.spec.backbone_table import facts_for; "
        "facts_for('resnet50'); print({'torch', 'timm', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def _rows() -> dict[str, list[object]]:
    table: dict[str, dict[str, list[object]]] = json.loads(TABLE_PATH.read_text(encoding="utf-8"))
    return table["backbones"]
