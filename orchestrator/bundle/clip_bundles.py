"""A CLIP as a Bundle: what its texts say is the head, and its text tower comes along.

So predict, evaluate, deploy and registry treat it as any other model. No data was seen: its scores
are empty.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from orchestrator.bundle.bundle import Bundle, open_bundle
from orchestrator.bundle.cache import default_cache
from orchestrator.bundle.manifest import MANIFEST
from orchestrator.bundle.writing import write_bundle
from orchestrator.data.inputs import Prepared
from orchestrator.models.building import build_backbone
from orchestrator.models.classifier import build_classifier_head
from orchestrator.models.clip import load_clip
from orchestrator.spec.durable import file_digest
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import BackboneSpec, InputContract, ObjectiveSpec, TaskSpec
from orchestrator.spec.prompts import LabelSet, WholePrompts
from orchestrator.spec.record import Record
from orchestrator.spec.strategy import ZeroShot

# A bundle has labels; a CLIP that is named without any has these.
_KINDS = ("photo", "drawing", "painting", "screenshot", "document")
OWN_LABELS = LabelSet(
    labels=_KINDS, descriptions={kind: WholePrompts(prompts=(f"a {kind}.",)) for kind in _KINDS}
)
NO_DATA = "none"
_N_SAMPLES = 4


def write_clip_bundle(folder: Path, spec: BackboneSpec, labels: LabelSet) -> Bundle:
    """A zero-shot Bundle in `folder`, whole and verified or not at all.

    It is compared with the model in memory on images drawn at random: there is no data.

    Args:
        folder: As `write_bundle` takes it.
        spec: The CLIP.
        labels: Its own labels; requests may bring others.

    Raises:
        SpecError: A prompt is too long.
        WeightsError: The CLIP cannot be had.
    """
    clip = load_clip(spec)
    embeddings = clip.label_embeddings(labels.prompts())
    experiment = Experiment(
        task=TaskSpec(kind="zero-shot-image-classification", labels=labels.labels),
        data_digest=NO_DATA,
        backbone=spec,
        weights_digest=clip.digest,
        input=clip.input,
        strategy=ZeroShot(templates=labels.templates, descriptions=labels.descriptions or None),
        objective=ObjectiveSpec(metric="accuracy"),
    )
    backbone = build_backbone(spec)
    head = build_classifier_head(backbone, experiment.strategy, n_outputs=len(labels.labels))
    head.start_from(embeddings)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return write_bundle(
        folder,
        experiment=experiment,
        record=Record(
            trial=experiment.id,
            status="finished",
            experiment=experiment,
            versions={"open_clip_torch": version("open_clip_torch")},
        ),
        backbone=backbone,
        head=head,
        test=None,
        samples=random_samples(clip.input),
        created_at=now,
    )


def default_clips() -> Path:
    """Where bundles of CLIPs are kept when nobody says: in the user's cache."""
    return default_cache().parent / "clips"


def cached_clip_bundle(cache: Path, spec: BackboneSpec, labels: LabelSet = OWN_LABELS) -> Bundle:
    """The bundle of a CLIP from a folder that keeps them, where it is written if it is not there.

    Args:
        cache: Keeps bundles by CLIP and labels; a local CLIP counts by what its files hold.
        spec: The CLIP.
        labels: Its own labels.

    Raises:
        IntegrityError: What is kept is damaged.
    """
    folder = cache / digest_of({"clip": _identity(spec), "labels": labels.to_json()})[:32]
    if (folder / MANIFEST).exists():
        return open_bundle(folder)
    return write_clip_bundle(folder, spec, labels)


def random_samples(contract: InputContract) -> list[Prepared]:
    """Images of nothing, the same each time."""
    shape = (_N_SAMPLES, 3, contract.size, contract.size)
    return [np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)]


def _identity(spec: BackboneSpec) -> dict[str, str]:
    """What tells one CLIP from another, without loading it."""
    files: list[Path] = []
    if spec.folder is not None:
        files = sorted(path for path in Path(spec.folder).iterdir() if path.is_file())
    elif spec.weights not in ("default", "none"):
        files = [Path(spec.weights)]
    return {"name": spec.name, **{path.name: file_digest(path) for path in files}}
