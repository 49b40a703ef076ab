"""The Experiment: everything that decides one result, and nothing else."""

from __future__ import annotations

from pydantic import Field

from orchestrator.spec.frozen import Frozen, digest_of
from orchestrator.spec.parts import BackboneSpec, Contract, ObjectiveSpec, TaskSpec
from orchestrator.spec.strategy import Strategy

DIGITS = 12  # of an id
HEAD = "head"  # the role of a parent whose trained head the experiment starts from


class Experiment(Frozen):
    """One result's complete cause, as frozen data.

    Workers, storage, tracking and the place where the weights file lies are not part of it: they
    must not change the result. Equal digests mean the same experiment.
    """

    task: TaskSpec
    data_digest: str
    backbone: BackboneSpec
    weights_digest: str = Field(description="digest of the initial tensors; `none` when random")
    input: Contract
    strategy: Strategy
    objective: ObjectiveSpec
    parents: dict[str, str] = Field(
        default_factory=dict, description="role → digest of an Experiment or a pretraining"
    )

    @property
    def digest(self) -> str:
        """SHA-256 over all that decides the result."""
        content = self.to_json()
        content["backbone"] = {"name": self.backbone.name}
        return digest_of(content)

    @property
    def id(self) -> str:
        """The short name of the trial that runs this: the digest's first 12 digits."""
        return self.digest[:DIGITS]
