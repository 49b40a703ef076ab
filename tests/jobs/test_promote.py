"""From an ended sweep to a registered bundle that answers as its trial did."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.promote import bundle_trial
from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.predictor import load_predictor
from orchestrator.data.transforms import eval_pixels
from orchestrator.runtime.cluster import Cluster
from orchestrator.runtime.folders import SweepFolder
from orchestrator.runtime.process_cache import open_examples
from orchestrator.spec.parsing import parse_sweep
from orchestrator.tuning.sweep import run_sweep

pytestmark = pytest.mark.ray

MakeSpec = Callable[..., dict[str, object]]


@pytest.fixture(scope="module")
def sweep(
    cluster: Cluster, make_spec: MakeSpec, tmp_path_factory: pytest.TempPathFactory
) -> SweepFolder:
    """Two ended trials: a head on stored features, and a partly fine-tuned network."""
    raw = make_spec(tmp_path_factory.mktemp("promoted") / "runs", budget={"trials": 2})
    return SweepFolder(run_sweep(parse_sweep(raw, base=Path.cwd())).folder)


@pytest.mark.parametrize("strategy", ["feature-extraction", "partial"])
def test_a_bundle_answers_as_its_trial_did_on_validation(sweep: SweepFolder, strategy: str) -> None:
    records = sweep.records().values()
    record = next(r for r in records if r.experiment.strategy.strategy == strategy)
    bundle = bundle_trial(sweep, record)
    path = sweep.trial(record.trial).root / "validation.arrow"
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    examples = open_examples(sweep / "data")
    images = [examples.image(row) for row in table.column("example").to_pylist()]
    pixels = np.stack([eval_pixels(image, bundle.input) for image in images])
    answered = load_predictor(bundle, threads=1).probabilities([pixels])
    np.testing.assert_allclose(answered, table.column("prob").to_pylist(), atol=1e-5)


def test_a_bundle_that_would_say_more_lies_beside_the_one_before(sweep: SweepFolder) -> None:
    records = sweep.records().values()
    record = next(r for r in records if r.experiment.strategy.strategy == "partial")
    first = bundle_trial(sweep, record)
    assert bundle_trial(sweep, record).path == first.path
    later = bundle_trial(sweep, record.model_copy(update={"reason": "looked at again"}))
    assert (first.path.name, later.path.name) == (record.trial, f"{record.trial}-2")
    assert open_bundle(first.path).digest == first.digest != later.digest


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_promote_predict_and_evaluate_agree_from_the_command_line(
    sweep: SweepFolder, colours: Path, tmp_path: Path
) -> None:
    registry = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def run(*words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *words, "--registry", registry, "--json"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            check=True,
        )
        return json.loads(done.stdout)

    promoted = run("promote", str(sweep.root), "--name", "colours")
    assert (promoted["version"], promoted["alias"]) == (1, "champion")
    assert promoted["onnx"]["max_difference"] <= promoted["onnx"]["tolerance"]
    assert promoted["without_onnx"] is None
    evaluated = run("evaluate", "colours@champion", str(colours / "test"))
    assert evaluated["metrics"]["accuracy"] == promoted["test"]["accuracy"]
    assert evaluated["metrics"]["log_loss"] == pytest.approx(promoted["test"]["log_loss"], rel=1e-4)
    by_torch = run("evaluate", "colours@champion", str(colours / "test"), "--runtime", "torch")
    assert by_torch["metrics"] == pytest.approx(evaluated["metrics"], abs=1e-4)
    answered = run("predict", "colours", str(colours / "test" / "red"), "--explain")
    explained = [answer["explanation"] for answer in answered["answers"]]
    assert [e["label"] for e in explained] == [a["label"] for a in answered["answers"]]
    assert {(e["map"]["rows"], len(e["map"]["values"])) for e in explained} == {(7, 7)}
    assert len(answered["answers"]) == 8
    right = sum(answer["label"] == "red" for answer in answered["answers"])
    recall = next(row["recall"] for row in evaluated["per_class"] if row["label"] == "red")
    assert right / 8 == pytest.approx(recall)
