"""The sweep's spec: one file's worth of data, search, budget and the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.spec.data import DataSpec
from orchestrator.spec.durable import file_digest
from orchestrator.spec.frozen import Frozen, digest_of
from orchestrator.spec.parts import LOWER_IS_BETTER, ObjectiveSpec, TaskKind, metrics_of
from orchestrator.spec.pretraining import CorpusSpec
from orchestrator.spec.search_space import Block

NAME_RULE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class BudgetSpec(Frozen):
    """When a sweep ends, and how much it may store.

    Attributes:
        trials: Records in all, those of earlier runs included.
        minutes: Of wall time, summed over resumes.
        store_gb: Gigabytes (10^9 bytes) that the feature store may hold, what other sweeps left
            there included: that is evicted, longest unused first, to make room. Half of the disk
            that nothing else occupies when not given.
        memory_gb: Gigabytes of main memory that the trials of a node may take together; what is
            free there when the sweep starts, if not given. GPU memory is not forecast.
    """

    trials: Annotated[int, Field(ge=1, le=1_000_000)] | None = 16
    minutes: Annotated[float, Field(gt=0)] | None = None
    store_gb: Annotated[float, Field(gt=0)] | None = None
    memory_gb: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _bounded(self) -> BudgetSpec:
        if self.trials is None and self.minutes is None:
            raise ValueError("trials and minutes are both null. Give at least one")
        return self


class TunerSpec(Frozen):
    """Who suggests the next experiment, and who stops one early."""

    searcher: Literal["optuna", "random", "grid"] = "optuna"
    scheduler: Literal["asha", "median", "none"] = "asha"


class ScreenSpec(Frozen):
    """Rung zero: how many backbones are fine-tuned, by their scores on stored features."""

    keep: Annotated[int, Field(ge=1, le=1024)]


class ElasticSpec(Frozen):
    """As many workers as the cluster has free, between two bounds."""

    elastic: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]

    @model_validator(mode="after")
    def _ordered(self) -> ElasticSpec:
        if self.elastic[0] > self.elastic[1]:
            raise ValueError("the first bound is above the second. Use [fewest, most]")
        return self


class WorkersSpec(Frozen):
    """What one trial occupies: workers, and CPUs and GPUs of each."""

    per_trial: Annotated[int, Field(ge=1, le=4096)] | ElasticSpec = 1
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1
    gpus: Annotated[float, Field(ge=0, le=64)] = 0

    @property
    def most(self) -> int:
        """The largest number of workers a trial may have."""
        return self.per_trial if isinstance(self.per_trial, int) else self.per_trial.elastic[1]

    @property
    def fewest(self) -> int:
        """The smallest number of workers a trial may have."""
        return self.per_trial if isinstance(self.per_trial, int) else self.per_trial.elastic[0]

    @property
    def threads(self) -> int:
        """Threads that one worker computes on."""
        return max(1, int(self.cpus))


class TrackingSpec(Frozen):
    """Where runs are tracked: an MLflow URI; a SQLite file under `storage` when not given."""

    mlflow: str | None = None


class SweepSpec(Frozen):
    """A whole sweep, resolved: defaults merged into blocks, paths absolute."""

    name: str
    task: TaskKind
    data: DataSpec
    search: tuple[Block, ...]
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0
    budget: BudgetSpec = BudgetSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    tuner: TunerSpec = TunerSpec()
    screen: ScreenSpec | None = None
    workers: WorkersSpec = WorkersSpec()
    storage: str = "runs"
    tracking: TrackingSpec = TrackingSpec()

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not NAME_RULE.fullmatch(name):
            raise ValueError(
                "a name is 1–64 of a–z, 0–9, '.', '_', '-', and starts with a letter or digit"
            )
        return name

    def identity(self, data_digest: str, corpora: Mapping[CorpusSpec, str] | None = None) -> str:
        """Digest of what is searched on what data; budget, workers and storage are not in it.

        The search over blocks is a set of questions: reordering the blocks asks the same ones.
        Weights and corpora count by what their files hold, not by where they lie.

        Args:
            data_digest: Of the labelled examples.
            corpora: The digest of each corpus that a block names.
        """
        blocks = [_placeless(block, corpora or {}) for block in self.search]
        content: dict[str, Any] = {
            "task": self.task,
            "data": data_digest,
            "search": sorted(blocks, key=digest_of),
            "objective": self.objective.to_json(),
            "tuner": self.tuner.to_json(),
            "screen": self.screen.to_json() if self.screen else None,
            "seed": self.seed,
        }
        return digest_of(content)


def _placeless(block: Block, corpora: Mapping[CorpusSpec, str]) -> Any:
    """A block as JSON data in which digests of contents stand for paths."""
    content = block.to_json()
    content.pop("twin_of", None)  # a digest over paths; what it points to is among the others
    if block.pretraining is not None and block.pretraining.corpus is not None:
        content["pretraining"]["corpus"] = corpora[block.pretraining.corpus]
    return _weightless(content)


def _weightless(value: Any) -> Any:
    """JSON data with the path of every weights file replaced by the digest of its content."""
    if isinstance(value, dict):
        return {
            key: _weights_identity(item) if key == "weights" else _weightless(item)
            for key, item in value.items()
        }
    return [_weightless(item) for item in value] if isinstance(value, list) else value


def _weights_identity(weights: str) -> str:
    if weights in ("default", "none") or weights.startswith("hub:"):
        return weights
    return file_digest(Path(weights))


def objective_from(raw: Any, task: TaskKind) -> Any:
    """The metric filled in from the task, and `mode` from the metric, where they are left out."""
    if not isinstance(raw, dict):
        return raw
    given = {"metric": metrics_of(task)[0], **raw}
    lower = isinstance(given["metric"], str) and given["metric"] in LOWER_IS_BETTER
    return {"mode": "min" if lower else "max", **given}
