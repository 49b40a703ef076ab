"""S4: zero-shot under a repeated label set against the image encoder alone."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from orchestrator.bundle.clip_bundles import random_samples, write_clip_bundle
from orchestrator.bundle.zero_shot import load_zero_shot_predictor
from orchestrator.spec.clip_models import parse_clip
from orchestrator.spec.prompts import LabelSet
from tests.benchmarks.harness import Measured, paired, seconds_of

ARCHITECTURE, N_LABELS, N_IMAGES = "ViT-B-32", 100, 4


def s4(folder: Path) -> Measured:
    """Throughput of requests with 100 labels, the same each time, as a share of the encoder's.

    The architecture is ViT-B/32 with random weights: what it costs does not depend on them. What
    the first request costs, which goes through the text tower, is beside the ratio.
    """
    torch.set_num_threads(1)
    spec = parse_clip(str(_written(folder / "clip")), base=folder)
    own = LabelSet(labels=("photo", "drawing"), templates="plain")
    bundle = write_clip_bundle(folder / "bundle", spec, own)
    predictor = load_zero_shot_predictor(bundle, threads=1)
    labels = LabelSet(labels=tuple(f"kind {i} of thing" for i in range(N_LABELS)))
    pixels = random_samples(bundle.input)[0][:N_IMAGES]  # type: ignore[arg-type]

    def asked() -> None:
        for image in pixels:
            predictor.labelled(labels).probabilities([image[None]])

    def encoded() -> None:
        for image in pixels:
            predictor.own.embeddings([image[None]])

    first_s = seconds_of(lambda: predictor.labelled(labels))
    ratio, ours, theirs = paired(encoded, asked, pairs=15)
    return Measured(
        id="S4",
        what=f"zero-shot with {N_LABELS} repeated labels against the image encoder alone",
        value=ratio,
        goal="≥ 0.9×",
        beside={
            "seconds_of_the_encoder": ours,
            "seconds_with_labels": theirs,
            "seconds_of_the_first_request": first_s,
        },
    )


def _written(folder: Path) -> Path:
    """A CLIP of the architecture with random weights, as open_clip's `local-dir:` takes it."""
    folder.mkdir(parents=True)
    config = open_clip.get_model_config(ARCHITECTURE)
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
