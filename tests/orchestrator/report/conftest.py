"""Seeded sweeps on disk, as the tuning layer leaves them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from orchestrator.spec.experiment import Experiment
from orchestrator.spec.parts import BackboneSpec, InputContract, ObjectiveSpec, TaskSpec
from orchestrator.spec.record import EpochRow, GroupRow, PhaseRow, Placement, Record
from orchestrator.spec.strategy import STRATEGIES
from orchestrator.tasks.metrics import multi_label_metrics, single_label_metrics, wilson_interval

LABELS = ("functional", "defective")
INPUT = InputContract(size=224, crop_fraction=0.875, mean=(0.5,) * 3, std=(0.25,) * 3)
BACKBONES = {"tf_efficientnet_lite0": 3_371_000, "mobilenetv3_small_100": 1_517_000}
SEARCH: list[dict[str, Any]] = [
    {
        "strategy": "feature-extraction",
        "backbone": list(BACKBONES),
        "head_lr": {"log": [1e-3, 1e-2]},
        "weight_decay": {"log": [1e-5, 1e-2]},
    },
    {
        "strategy": "partial",
        "backbone": ["tf_efficientnet_lite0"],
        "unfreeze": [1, 2, 3],
        "backbone_lr": {"log": [1e-5, 3e-3]},
        "augment": ["light", "standard", "trivial"],
    },
    {
        "strategy": "full",
        "backbone": ["tf_efficientnet_lite0"],
        "backbone_lr": {"log": [1e-5, 3e-3]},
        "label_smoothing": {"uniform": [0.0, 0.2]},
    },
    {"strategy": "scratch", "backbone": ["tf_efficientnet_lite0"]},
]
QUALITY = {"feature-extraction": 1.1, "partial": 1.9, "full": 1.7, "scratch": 0.5}


@dataclass(frozen=True)
class Recipe:
    """What a fixture sweep is like."""

    n_trials: int = 24
    labels: tuple[str, ...] = LABELS
    kind: str = "image-classification"
    n_validation: int = 320
    n_test: int = 520
    metric: str = "f1_macro"
    mode: str = "max"
    all_diverged: bool = False
    search: list[dict[str, Any]] = field(default_factory=lambda: SEARCH)
    uri: str = "file:///data/elpv/{split}/cell{example:04d}.png"
    name: str = "solar-cells"


Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build_sweep(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Writes the sweep of a Recipe into a folder of its own, and returns that."""

    def build(**changes: Any) -> Path:
        root = tmp_path_factory.mktemp("sweeps") / "sweep"
        return SweepWriter(root, Recipe(**changes)).write()

    return build


@pytest.fixture
def thumbnail() -> Callable[[str, int], bytes]:
    """A grey PNG whose tone depends on the example."""

    def draw(split: str, example: int) -> bytes:
        rng = np.random.default_rng(example)
        ramp = np.linspace(90, 190, 96)[None, :] + rng.normal(0, 14, (96, 96))
        ramp[:: 24 + example % 9] -= 60
        out = io.BytesIO()
        Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(out, "PNG")
        return out.getvalue()

    return draw


class SweepWriter:
    """Draws trials from one seeded generator and writes the folder."""

    def __init__(self, root: Path, recipe: Recipe, *, seed: int = 7) -> None:
        self.root, self.recipe = root, recipe
        self.rng = np.random.default_rng(seed)
        self.task = TaskSpec.model_validate({"kind": recipe.kind, "labels": recipe.labels})
        self.objective = ObjectiveSpec.model_validate(
            {"metric": recipe.metric, "mode": recipe.mode}
        )
        self.validation = Split(self, "validation", recipe.n_validation)
        self.test = Split(self, "test", recipe.n_test)

    def write(self) -> Path:
        self.root.mkdir(parents=True)
        rows = [self._trial(i) for i in range(self.recipe.n_trials)]
        sign = -1 if self.recipe.mode == "max" else 1
        rows.sort(key=lambda r: (r["objective"] is None, sign * (r["objective"] or 0)))
        for rank, row in enumerate((r for r in rows if r["objective"] is not None), 1):
            row["rank"] = rank
        scratch = [r["trial"] for r in rows if r["strategy"] == "scratch" and r["rank"]]
        board = {
            "objective": self.objective.to_json(),
            "rows": [{k: v for k, v in r.items() if k != "_quality"} for r in rows],
            "baseline": scratch[0] if scratch else None,
            "seconds": 0.9 * sum(r["seconds"] for r in rows),
            "status": "finished",
        }
        self._json("leaderboard.json", board)
        self._json("sweep.json", self._sweep())
        self._json("plan.json", self._plan(rows))
        if rows and rows[0]["objective"] is not None:
            self._write_test(rows[0])
        return self.root

    def _json(self, name: str, content: Mapping[str, Any]) -> None:
        (self.root / name).write_text(json.dumps(content, indent=1), encoding="utf-8")

    def _trial(self, index: int) -> dict[str, Any]:
        search = self.recipe.search
        block = index % len(search)
        if search[block]["strategy"] == "scratch" and index > len(search):
            block = index % (len(search) - 1)
        strategy = search[block]["strategy"]
        chosen = {k: self._draw(v) for k, v in search[block].items() if k != "strategy"}
        backbone = chosen.pop("backbone")
        if index < len(search):
            vetted = STRATEGIES[strategy].model_validate({"strategy": strategy}).to_json()
            chosen = {k: vetted[k] for k in chosen}
        rate = chosen.get("backbone_lr", 1e-4)
        quality = QUALITY[strategy] - 0.35 * abs(np.log10(rate / 2e-4)) + self.rng.normal(0, 0.1)
        if backbone.startswith("mobilenet"):
            quality -= 0.3
        diverged = self.recipe.all_diverged or rate > 1.6e-3
        failed = not diverged and index == 10
        params = STRATEGIES[strategy].model_validate({"strategy": strategy, **chosen})
        experiment = Experiment(
            task=self.task,
            data_digest="d" * 64,
            backbone=BackboneSpec(name=backbone),
            weights_digest="none" if strategy == "scratch" else "e" * 64,
            input=INPUT,
            strategy=params.model_copy(update={"seed": index}),  # distinct digests
            objective=self.objective,
        )
        record = self._record(experiment, quality, diverged=diverged, failed=failed)
        folder = self.root / "trials" / record.trial
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(record.model_dump_json())
        if record.objective is not None:
            self.validation.write(folder / "validation.arrow", quality)
        return {
            "rank": None,
            "trial": record.trial,
            "status": record.status,
            "reason": record.reason,
            "block": block,
            "strategy": strategy,
            "backbone": backbone,
            "searched": chosen,
            "objective": record.objective,
            "validation": dict(record.validation),
            "best_epoch": record.best_epoch,
            "n_epochs": len(record.epochs),
            "seconds": record.seconds,
            "images_per_s": record.images_per_s,
            "peak_memory_bytes": record.peak_memory_bytes,
            "default": index < len(search),
            "_quality": quality,
        }

    def _draw(self, space: Any) -> Any:
        match space:
            case {"log": [low, high]}:
                return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))
            case {"uniform": [low, high]}:
                return float(self.rng.uniform(low, high))
            case list():
                return space[int(self.rng.integers(len(space)))]
            case _:
                return space

    def _record(
        self, experiment: Experiment, quality: float, *, diverged: bool, failed: bool
    ) -> Record:
        strategy = experiment.strategy.strategy
        phases = self._phases(experiment)
        metrics = self.validation.metrics(quality)
        n_epochs = sum(phase.epochs for phase in phases)
        stopped = not diverged and self.rng.random() < 0.25 and n_epochs > 6
        if stopped or diverged:
            n_epochs = int(self.rng.integers(3, max(4, n_epochs)))
        best = max(1, round(n_epochs * self.rng.uniform(0.6, 1.0)))
        speed = {"feature-extraction": 900.0, "partial": 150.0}.get(strategy, 62.0)
        rows = self._epochs(phases, n_epochs, best, metrics, speed, quality)
        status = "diverged" if diverged else "failed" if failed else "finished"
        scored = status == "finished"
        reason = {"diverged": "loss became NaN in epoch 3", "failed": "RuntimeError: out of memory"}
        return Record(
            trial=experiment.id,
            status="stopped" if scored and stopped else status,  # type: ignore[arg-type]
            reason="asha" if scored and stopped else reason.get(status, ""),
            experiment=experiment,
            phases=phases,
            epochs=rows,
            best_epoch=best if scored else None,
            validation=metrics if scored else {},
            objective=metrics[self.recipe.metric] if scored else None,
            seconds=sum(row.seconds for row in rows),
            images_per_s=speed,
            peak_memory_bytes=int(self.rng.uniform(0.4, 3.0) * 2**30),
            placement=Placement(
                host="node-1", device="cpu", workers=1, threads=2, precision="fp32"
            ),
            started_at="2026-01-05T10:00:00Z",
            versions={"torch": "2.9"},
        )

    def _phases(self, experiment: Experiment) -> tuple[PhaseRow, ...]:
        params = experiment.strategy
        total, head = BACKBONES.get(experiment.backbone.name, 3_000_000), 2562
        rate = getattr(params, "backbone_lr", 1e-3)
        group = GroupRow(name="head", lr=1e-3, weight_decay=0.01, parameters=head)
        warm = PhaseRow(
            name="warm-up", epochs=3, groups=(group,), trainable=head, frozen=total - head
        )
        if params.strategy == "feature-extraction":
            return (warm.model_copy(update={"name": "head", "epochs": 10}),)
        moved = total // 3 if params.strategy == "partial" else total - head
        groups = (
            group,
            GroupRow(name="stage 7", lr=rate, weight_decay=0.01, parameters=moved // 2),
            GroupRow(name="stage 6", lr=rate / 2, weight_decay=0.01, parameters=moved - moved // 2),
        )
        name = "all" if params.strategy == "scratch" else "fine-tuning"
        trainable = moved + head
        main = PhaseRow(
            name=name, epochs=12, groups=groups, trainable=trainable, frozen=total - trainable
        )
        return (main,) if params.strategy == "scratch" else (warm, main)

    def _epochs(
        self,
        phases: tuple[PhaseRow, ...],
        n_epochs: int,
        best: int,
        metrics: Mapping[str, float],
        speed: float,
        quality: float,
    ) -> tuple[EpochRow, ...]:
        names = [phase.name for phase in phases for _ in range(phase.epochs)]
        rows = []
        for epoch in range(1, n_epochs + 1):
            away = np.exp(-2.6 * epoch / best) if epoch < best else 0.004 * (epoch - best)
            noise = 0 if epoch == best else abs(self.rng.normal(0, 0.006))
            shown = {
                key: value + (away + noise) * (0.4 if key in {"log_loss", "ece"} else -0.35)
                for key, value in metrics.items()
            }
            rows.append(
                EpochRow(
                    epoch=epoch,
                    phase=names[epoch - 1],
                    train_loss=float(0.7 * np.exp(-0.12 * epoch) + 0.25 / max(quality, 0.3)),
                    validation=shown,
                    seconds=1800 / speed * (0.3 if names[epoch - 1] == "warm-up" else 1.0),
                    images_per_s=speed,
                )
            )
        return tuple(rows)

    def _sweep(self) -> dict[str, Any]:
        labels = self.recipe.labels
        return {
            "name": self.recipe.name,
            "digest": "0123456789abcdef" * 4,
            "created_at": "2026-01-05T09:58:12Z",
            "spec": {
                "name": self.recipe.name,
                "task": self.recipe.kind,
                "objective": self.objective.to_json(),
                "search": self.recipe.search,
                "budget": {"trials": self.recipe.n_trials, "minutes": 30},
            },
            "labels": list(labels),
            "task": self.recipe.kind,
            "data": {
                "counts": {
                    "train": {label: 1100 // (i + 1) + 20 for i, label in enumerate(labels)},
                    "validation": {label: 220 // (i + 1) + 4 for i, label in enumerate(labels)},
                    "test": {label: 360 // (i + 1) + 4 for i, label in enumerate(labels)},
                },
                "audit": [
                    {
                        "severity": "warning",
                        "kind": "duplicates",
                        "message": "14 training images also occur in test.",
                        "items": [f"train/cell{i:04d}.png" for i in range(9)],
                        "count": 14,
                    },
                    {
                        "severity": "note",
                        "kind": "imbalance",
                        "message": "The largest class is twice the smallest.",
                        "items": [],
                        "count": 0,
                    },
                ],
            },
            "environment": {
                "versions": {"python": "3.11.7", "torch": "2.9.1", "ray": "2.60.0"},
                "host": "node-1",
                "cpus": 8,
                "gpus": 0,
            },
        }

    def _plan(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        shared = {"what": "frozen features of tf_efficientnet_lite0", "trials": 9}
        return {
            "trials": len(rows),
            "forecast": {"seconds": 1500.0, "peak_memory_bytes": 2.4e9, "feature_bytes": 3.1e8},
            "actual": {"seconds": 1734.0, "peak_memory_bytes": 2.6e9, "feature_bytes": 3.0e8},
            "shared": [{**shared, "seconds_each": 41.5}],
        }

    def _write_test(self, row: Mapping[str, Any]) -> None:
        self.test.write(self.root / "test.arrow", row["_quality"] - 0.08)
        metrics = self.test.metrics(row["_quality"] - 0.08)
        n = self.recipe.n_test
        interval = list(wilson_interval(round(metrics["accuracy"] * n), n))
        self._json(
            "test.json",
            {
                "trial": row["trial"],
                "metrics": metrics,
                "n": n,
                "intervals": {"accuracy": interval},
                "seconds": 11.2,
            },
        )


class Split:
    """A split's truth, and answers of any quality on it; hard examples are hard for all."""

    def __init__(self, writer: SweepWriter, name: str, n: int) -> None:
        self.name, self.n, self.recipe = name, n, writer.recipe
        n_classes = len(writer.recipe.labels)
        rng = np.random.default_rng(len(name))
        self.multi = writer.recipe.kind == "image-multilabel-classification"
        odds = 1 / np.arange(1, n_classes + 1)
        classes = rng.choice(n_classes, n, p=odds / odds.sum())
        self.truth = np.eye(n_classes, dtype=np.int64)[classes]
        if self.multi:
            self.truth |= (rng.random((n, n_classes)) < 0.2).astype(np.int64)
        self.noise = rng.normal(0, 1, (n, n_classes))

    def probs(self, quality: float) -> np.ndarray:
        own = np.random.default_rng(int(abs(quality) * 1e6)).normal(0, 0.5, self.noise.shape)
        logits = 0.95 * quality * self.truth + self.noise + own
        if self.multi:
            return 1 / (1 + np.exp(-(logits - quality)))
        shifted = np.exp(1.3 * (logits - logits.max(axis=1, keepdims=True)))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def metrics(self, quality: float) -> dict[str, float]:
        if self.multi:
            return multi_label_metrics(self.probs(quality), self.truth)
        classes = self.truth.argmax(axis=1)
        if self.truth.shape[1] > 20:  # an AUC by class would take the test's whole time
            share = float((self.probs(quality).argmax(axis=1) == classes).mean())
            return {"accuracy": share, "f1_macro": share, "log_loss": 1 - share}
        return single_label_metrics(self.probs(quality), classes)

    def write(self, path: Path, quality: float) -> None:
        uris = [self.recipe.uri.format(split=self.name, example=i) for i in range(self.n)]
        targets = [np.flatnonzero(row).tolist() for row in self.truth]
        table = pa.table(
            {
                "example": pa.array(range(self.n), pa.int64()),
                "prob": pa.array(self.probs(quality).tolist(), pa.list_(pa.float32())),
                "target": pa.array(targets, pa.list_(pa.int32())),
                "uri": pa.array(uris, pa.string()),
            }
        )
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
