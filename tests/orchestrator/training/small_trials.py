"""Trials that take a fraction of a second, and surroundings for them: real data, real features."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from orchestrator.data.examples import Example, Examples, Split
from orchestrator.data.pieces import pieces_of
from orchestrator.features.filling import compute_outputs, feature_key, search_rows
from orchestrator.features.store import FeatureStore, Float32, Values, part_ranges
from orchestrator.models.backbone import Backbone, Output
from orchestrator.models.building import build_backbone
from orchestrator.models.clip import ensure_embeddings
from orchestrator.models.label_embeddings import LabelEmbeddings
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, InputContract, ObjectiveSpec, TaskSpec
from orchestrator.spec.prompts import class_prompts
from orchestrator.spec.record import EpochRow, PhaseRow
from orchestrator.spec.strategy import Augment, Strategy
from orchestrator.training.evaluation import predict_split, trained_network
from orchestrator.training.io import Decision
from orchestrator.training.trial import TrialResult, run_trial

SIZE = 32
CPU = torch.device("cpu")
CONTRACT = InputContract(
    size=SIZE, crop_fraction=1.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
COLOURS = {"blue": (90, 100, 150), "green": (90, 150, 100), "red": (150, 100, 90)}

Report = Callable[[EpochRow], tuple[Decision, str]]


def write_examples(folder: Path, *, n_train: int, n_validation: int, seed: int = 0) -> Examples:
    """Noisy pictures of three colours, as PNG files beside the index, unevenly many a class."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(n_train + n_validation):
        label = names[min(i % 4, 2)]
        noise = rng.normal(0, 60, (SIZE, SIZE, 3))
        pixels = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
        path = folder / "images" / f"{i:03d}.png"
        Image.fromarray(pixels).save(path)
        split: Split = "train" if i < n_train else "validation"
        content = hashlib.sha256(pixels.tobytes()).hexdigest()
        rows.append(Example(uri=str(path), content=content, split=split, labels=(label,)))
    return Examples.write(folder / "index", rows, labels=names, multilabel=False)


def experiment_of(
    strategy: Strategy, examples: Examples, *, backbone: str = "mobilenetv3_small_050"
) -> Experiment:
    """The experiment that `strategy` makes of some examples, on a random backbone."""
    return Experiment(
        task=TaskSpec(kind="image-classification", labels=examples.labels),
        data_digest=examples.digest,
        backbone=BackboneSpec(name=backbone, weights="none"),
        weights_digest="none",
        input=CONTRACT,
        strategy=strategy,
        objective=ObjectiveSpec(metric="log_loss", mode="min"),
    )


@cache
def initial_backbone(backbone: str | BackboneSpec, size: int = SIZE) -> Backbone:
    """A randomly initialised backbone, not to be changed."""
    if isinstance(backbone, str):
        backbone = BackboneSpec(name=backbone, weights="none")
    return build_backbone(backbone, size=size)


class MemoryIO:
    """A `TrialIO` on a folder: features are computed when first asked for, reports are kept.

    Attributes:
        used: The backbone that the trial was given, and has changed.
        rows: What was reported.
        reported: The backbone's tensors at the last report, before the best epoch's come back.
        steps: Steps done over all epochs.
        stores_cuts: Whether activations are stored for whoever can start from them.
        parent: The head that the experiment starts from.
        dies_at_step: The step of an epoch in which the process dies; 0 for none.
    """

    def __init__(
        self,
        experiment: Experiment,
        examples: Examples,
        store: FeatureStore,
        checkpoints: Path,
        *,
        on_report: Report | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.device = CPU
        self.rank = rank
        self.world_size = world_size
        self.threads = 1
        self.checkpoints = checkpoints
        self.examples = examples
        size = experiment.input.size
        self.used = copy.deepcopy(initial_backbone(experiment.backbone, size))
        self.rows: list[EpochRow] = []
        self.reported: dict[str, Tensor] = {}
        self.phases: list[PhaseRow] = []
        self.steps = 0
        self.dies_at_step = 0
        self.stores_cuts = True
        self.parent: dict[str, Tensor] = {}
        self._experiment, self._store, self._on_report = experiment, store, on_report

    def backbone(self) -> Backbone:
        return self.used

    def parent_head(self) -> dict[str, Tensor]:
        return self.parent

    def label_embeddings(self) -> LabelEmbeddings:
        strategy = self._experiment.strategy
        return ensure_embeddings(
            self._store.root.parent / "texts",
            self._experiment.backbone,
            self._experiment.weights_digest,
            class_prompts(self.examples.labels, strategy.templates, strategy.descriptions),
        )

    def features(
        self, rows: npt.NDArray[np.int64], view: int = 0, augment: Augment = "none"
    ) -> Float32:
        return self._entry(self._experiment.strategy.pooling, rows, view, augment)

    def stores(self, cut: int, augment: Augment = "none") -> bool:
        return self.stores_cuts

    def activations(
        self, rows: npt.NDArray[np.int64], cut: int, view: int = 0, augment: Augment = "none"
    ) -> Values:
        return self._entry(cut, rows, view, augment)

    def _entry(
        self, output: Output, rows: npt.NDArray[np.int64], view: int, augment: Augment
    ) -> Values:
        positions = search_rows(pieces_of(self.examples, self._experiment.input))
        key = feature_key(
            self._experiment.backbone,
            self._experiment.weights_digest,
            self._experiment.input,
            self._experiment.data_digest,
            output=output,
            view=view,
            augment=augment,
            precision=self._experiment.strategy.stored_precision,
        )
        found = self._store.find(key)
        if found is None:
            for part in part_ranges(len(positions)):
                with self._store.writing(key, part) as writer:
                    for (values,) in compute_outputs(
                        copy.deepcopy(
                            initial_backbone(self._experiment.backbone, self._experiment.input.size)
                        ),
                        self.examples,
                        positions[part.start : part.stop],
                        [output],
                        contract=self._experiment.input,
                        view=view,
                        augment=augment,
                        device=CPU,
                        threads=1,
                    ):
                        writer.write(values)
            self._store.seal(key, n_rows=len(positions))
            found = self._store.find(key)
            assert found is not None
        return found.take(np.searchsorted(positions, rows))

    def on_phase(self, phase: PhaseRow) -> None:
        self.phases.append(phase)

    def on_step(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> None:
        self.steps += 1
        if step == self.dies_at_step:
            raise InterruptError

    def report(self, row: EpochRow, objective_best: float) -> tuple[Decision, str]:
        self.rows.append(row)
        self.reported = {name: t.clone() for name, t in self.used.state_dict().items()}
        return self._on_report(row) if self._on_report else (Decision.CONTINUE, "")


class MakeIO:
    """Makes surroundings for trials on the small data set, below one folder.

    Attributes:
        examples: The data set.
    """

    def __init__(self, examples: Examples, store: FeatureStore, root: Path) -> None:
        self.examples = examples
        self._store, self._root = store, root

    def __call__(
        self,
        experiment: Experiment,
        folder: str = "checkpoints",
        *,
        on_report: Report | None = None,
    ) -> MemoryIO:
        """New surroundings; `folder` names their checkpoints."""
        root = self._root / folder
        return MemoryIO(experiment, self.examples, self._store, root, on_report=on_report)


class InterruptError(Exception):
    """The trial's process dies."""


def dies_after(epoch: int) -> Report:
    """A report that kills the trial once `epoch` is done."""

    def report(row: EpochRow) -> tuple[Decision, str]:
        if row.epoch == epoch:
            raise InterruptError
        return Decision.CONTINUE, ""

    return report


def stops_after(epoch: int, reason: str) -> Report:
    """A report that asks the trial to end itself once `epoch` is done."""

    def report(row: EpochRow) -> tuple[Decision, str]:
        return (Decision.STOP, reason) if row.epoch == epoch else (Decision.CONTINUE, "")

    return report


class Outcome:
    """What a trial left behind: its result, the final network's tensors, and predictions."""

    def __init__(self, experiment: Experiment, io: MemoryIO, result: TrialResult) -> None:
        self.result = result
        self.backbone = {name: t.clone() for name, t in io.used.state_dict().items()}
        self.reported = io.reported
        self.tensors: dict[str, Tensor] = {}
        self.probs = np.empty((0, 0), np.float32)
        if result.checkpoint is not None:
            folder = io.checkpoints / Path(result.checkpoint).name
            fresh = copy.deepcopy(initial_backbone(experiment.backbone))
            network = trained_network(experiment, fresh, folder)
            self.tensors = {name: t.clone() for name, t in network.state_dict().items()}
            self.probs = predict_split(
                network,
                experiment,
                io.examples,
                "validation",
                device=CPU,
                threads=1,
            )


def run_small(experiment: Experiment, io: MemoryIO) -> Outcome:
    """Run a trial to its end and gather what it left behind."""
    return Outcome(experiment, io, run_trial(experiment, io))


def timeless(rows: tuple[EpochRow, ...]) -> list[dict[str, object]]:
    """The rows without what the clock measured."""
    return [row.model_dump(exclude={"seconds", "images_per_s"}) for row in rows]


def assert_same(a: Outcome, b: Outcome) -> None:
    """Asserts that two outcomes are bit-equal, time apart."""
    assert timeless(a.result.epochs) == timeless(b.result.epochs)
    assert a.result.phases == b.result.phases
    assert (a.result.status, a.result.best_epoch) == (b.result.status, b.result.best_epoch)
    assert a.result.objective == b.result.objective
    assert a.tensors.keys() == b.tensors.keys()
    differing = [name for name in a.tensors if not torch.equal(a.tensors[name], b.tensors[name])]
    assert not differing
    assert all(torch.equal(a.backbone[name], b.backbone[name]) for name in a.backbone)
    assert np.array_equal(a.probs, b.probs)
