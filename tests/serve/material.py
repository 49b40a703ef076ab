"""Bundles without a network: an image's label is its strongest colour, a text's its length."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.manifest import render, sealed
from orchestrator.bundle.predictor import answers
from orchestrator.bundle.preparing import ImagePreparer, Input, TextPreparer
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import (
    BackboneSpec,
    Contract,
    InputContract,
    ObjectiveSpec,
    TaskKind,
    TaskSpec,
    TextContract,
)
from orchestrator.spec.record import EpochRow, GroupRow, PhaseRow, Record
from orchestrator.spec.strategy import FeatureExtraction
from serve.endpoint import LocalEndpoint
from serve.entry import Entry, Identity
from serve.handler import Handler
from serve.keys import Keys
from serve.limits import Limits
from serve.worker import Worker

COLOURS = ("red", "green", "blue")
POISON = (1, 2, 3)  # of this colour an image breaks the model

IMAGES = InputContract(size=32, crop_fraction=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TEXTS = TextContract(size=16, tokenizer="f" * 64, pad=0)


def plain_bundle(
    folder: Path, *, kind: TaskKind, labels: tuple[str, ...], salt: str = ""
) -> Bundle:
    """A verified bundle whose weights are none."""
    contract: Contract = IMAGES if "image" in kind else TEXTS
    experiment = Experiment(
        task=TaskSpec(kind=kind, labels=labels),
        data_digest="d" * 64,
        backbone=BackboneSpec(name="mobilenetv3_small_050"),
        weights_digest="e" * 64,
        input=contract,
        strategy=FeatureExtraction(seed=7),
        objective=ObjectiveSpec(),
    )
    contents = {
        "model.safetensors": f"weights {salt}".encode(),
        "experiment.json": render(experiment.to_json()),
        "record.json": render(record_of(experiment).to_json()),
        "MODEL_CARD.md": b"# A card\n",
    }
    manifest = sealed(
        {
            "task": experiment.task,
            "input": contract,
            "backbone": {"name": experiment.backbone.name, "weights": "none"},
            "strategy": experiment.strategy,
            "scores": {"validation": {"metrics": {"accuracy": 0.8}}},
            "experiment": experiment.digest,
            "versions": {"torch": "2.9.0"},
            "created_at": "2026-01-31T12:00:00Z",
            "files": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
                for name, data in contents.items()
            },
        }
    )
    folder.mkdir(parents=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "bundle.json").write_bytes(render(manifest.to_json()))
    return open_bundle(folder)


def network_experiment() -> Experiment:
    """Of a small real network, for `image_bundle`."""
    return Experiment(
        task=TaskSpec(kind="image-classification", labels=COLOURS),
        data_digest="d" * 64,
        backbone=BackboneSpec(name="mobilenetv3_small_050"),
        weights_digest="e" * 64,
        input=InputContract(size=64, crop_fraction=1.0, mean=(0.5,) * 3, std=(0.5,) * 3),
        strategy=FeatureExtraction(seed=7),
        objective=ObjectiveSpec(),
    )


def record_of(experiment: Experiment) -> Record:
    """How the experiment is said to have ended."""
    phase = PhaseRow(
        name="head",
        epochs=1,
        groups=(GroupRow(name="head", lr=1e-3, weight_decay=1e-4, parameters=3),),
        trainable=3,
        frozen=1,
    )
    epoch = EpochRow(
        epoch=1,
        phase="head",
        train_loss=0.7,
        validation={"accuracy": 0.8},
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


class Colours:
    """Answers with the share of each colour; decodes as every predictor does.

    Args:
        bundle: An image bundle with the labels of COLOURS.
        seconds: Each batch takes, beside the decoding.
    """

    def __init__(self, bundle: Bundle, *, seconds: float = 0.0) -> None:
        self.manifest = bundle.manifest
        self.preparer = ImagePreparer(IMAGES)
        self.seconds = seconds

    def probabilities(self, views: Sequence[Any]) -> Any:
        means = views[0].mean(axis=(2, 3)).astype(np.float32) + 1e-3
        if any(np.allclose(row, POISON, atol=0.5) for row in means):
            raise RuntimeError("a secret of the model's insides")
        return means / means.sum(axis=1, keepdims=True)

    def predict(
        self, inputs: Sequence[Input], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[dict[str, Any]]:
        time.sleep(self.seconds)
        return answers(self, inputs, top=top, batch_size=batch_size)  # type: ignore[arg-type]

    def embeddings(self, views: Sequence[Any]) -> Any:
        return views[0].mean(axis=(2, 3)).astype(np.float32)


class Lengths:
    """Texts of ten characters or more are long."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
        tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
        self.preparer = TextPreparer(TEXTS, tokenizer, 1)

    def probabilities(self, views: Sequence[Any]) -> Any:
        long = (views[0].lengths >= 10).astype(np.float32)
        return np.stack([1 - long, long], axis=1)

    def predict(
        self, inputs: Sequence[Input], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[dict[str, Any]]:
        return answers(self, inputs, top=top, batch_size=batch_size)  # type: ignore[arg-type]

    def embeddings(self, views: Sequence[Any]) -> Any:
        return views[0].lengths[:, None].astype(np.float32)


def served(
    folder: Path,
    *,
    limits: Limits | None = None,
    keys: Keys | None = None,
    seconds: float = 0.0,
    threads: int = 1,
) -> Handler:
    """The application of an image model `colours` and a text model `lengths`."""
    limits = limits or Limits()
    worker = Worker(threads=threads, queue=limits.queue)
    images = plain_bundle(folder / "colours", kind="image-classification", labels=COLOURS)
    texts = plain_bundle(folder / "lengths", kind="text-classification", labels=("short", "long"))
    endpoints = [
        LocalEndpoint(
            Entry(Identity("colours", "3", "champion", images.digest), images, limits),
            Colours(images, seconds=seconds),  # type: ignore[arg-type]
            worker,
        ),
        LocalEndpoint(
            Entry(Identity("lengths", "1", None, texts.digest), texts, limits),
            Lengths(texts),  # type: ignore[arg-type]
            worker,
        ),
    ]
    return Handler({e.entry.name: e for e in endpoints}, limits=limits, keys=keys or Keys({}))


def image_file(
    colour: tuple[int, int, int] = (200, 30, 10),
    size: tuple[int, int] = (40, 30),
    form: str = "PNG",
) -> bytes:
    """An encoded image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()
