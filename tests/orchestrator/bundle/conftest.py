"""A small bundle without a real model, for the rules that concern bytes and names only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.manifest import render, sealed
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, InputContract, ObjectiveSpec, TaskSpec
from orchestrator.spec.record import EpochRow, GroupRow, PhaseRow, Record
from orchestrator.spec.strategy import FeatureExtraction

LABELS = ("good", "cracked", "dark")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and more so beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    return Experiment(
        task=TaskSpec(kind="image-classification", labels=LABELS),
        data_digest="d" * 64,
        backbone=BackboneSpec(name="mobilenetv3_small_100"),
        weights_digest="e" * 64,
        input=InputContract(
            size=64, crop_fraction=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        strategy=FeatureExtraction(seed=7),
        objective=ObjectiveSpec(),
    )


@pytest.fixture(scope="session")
def record(experiment: Experiment) -> Record:
    phase = PhaseRow(
        name="head",
        epochs=1,
        groups=(GroupRow(name="head", lr=1e-3, weight_decay=1e-4, parameters=3075),),
        trainable=3075,
        frozen=1_500_000,
    )
    epoch = EpochRow(
        epoch=1,
        phase="head",
        train_loss=0.7,
        validation={"accuracy": 0.8, "log_loss": 0.5},
        seconds=1.0,
        images_per_s=100.0,
    )
    return Record(
        trial=experiment.id,
        status="finished",
        experiment=experiment,
        phases=(phase,),
        epochs=(epoch,),
        best_epoch=1,
        validation=epoch.validation,
        objective=0.8,
        versions={"torch": "2.9.0"},
    )


Written = Callable[..., Bundle]


@pytest.fixture(scope="session")
def write_plain(experiment: Experiment, record: Record) -> Written:
    """Writes a bundle whose weights are no weights; keywords replace fields of its manifest."""

    def write(
        folder: Path, *, weights: bytes = b"w" * 1000, onnx: bytes | None = None, **fields: Any
    ) -> Bundle:
        contents = {
            "model.safetensors": weights,
            "experiment.json": render(experiment.to_json()),
            "record.json": render(record.to_json()),
            "MODEL_CARD.md": b"# A card\n",
            **({} if onnx is None else {"model.onnx": onnx}),
        }
        content = {
            "task": experiment.task,
            "input": experiment.input,
            "backbone": {"name": experiment.backbone.name, "weights": "none"},
            "strategy": experiment.strategy,
            "scores": {"validation": {"metrics": record.validation}},
            "experiment": experiment.digest,
            "versions": {"torch": "2.9.0"},
            "created_at": "2026-01-31T12:00:00Z",
            "files": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
                for name, data in contents.items()
            },
        }
        manifest = sealed({**content, **fields})
        folder.mkdir(parents=True)
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        (folder / "bundle.json").write_bytes(render(manifest.to_json()))
        return open_bundle(folder)

    return write


@pytest.fixture
def plain(write_plain: Written, tmp_path: Path) -> Bundle:
    return write_plain(tmp_path / "plain")
