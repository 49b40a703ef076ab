"""Outputs of a trained network on examples that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from orchestrator.data.examples import Examples, Split
from orchestrator.data.pieces import pieces_of
from orchestrator.errors import IntegrityError
from orchestrator.features.network_inputs import network_inputs
from orchestrator.features.store import batched
from orchestrator.models.adapters import merge_adapters
from orchestrator.models.backbone import Backbone
from orchestrator.models.classifier import (
    build_classifier_head,
    flat,
    flat_width,
    mean_over_views,
)
from orchestrator.models.placing import placed
from orchestrator.spec.experiment import Experiment
from orchestrator.tasks.task import Said, build_task
from orchestrator.training.checkpoint import read_checkpoint
from orchestrator.training.network import Network
from orchestrator.training.sources import EVALUATION_BATCH, iterate_judged
from orchestrator.training.trial import load_trained


def trained_network(experiment: Experiment, backbone: Backbone, checkpoint: Path) -> Network:
    """The network that a checkpoint describes, in eval mode, its adapters merged.

    Args:
        experiment: Whose checkpoint it is.
        backbone: With the experiment's initial weights; it is changed.
        checkpoint: The checkpoint's folder.

    Raises:
        IntegrityError: The checkpoint is missing or damaged.
    """
    strategy = experiment.strategy
    head = build_classifier_head(backbone, strategy, n_outputs=len(experiment.task.outputs))
    found = read_checkpoint(checkpoint)
    if found is None:
        raise IntegrityError(f"the checkpoint {checkpoint} is missing or damaged")
    network = Network(backbone, head, strategy)
    load_trained(network, found)
    if backbone.adapted:
        merge_adapters(backbone)
    return network.eval()


def predict_split(
    network: Network,
    experiment: Experiment,
    examples: Examples,
    split: Split,
    *,
    device: torch.device,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> Said:
    """What a network says of a split's examples, in order, under the evaluation transform.

    Args:
        network: In eval mode.
        experiment: Its input contract and task.
        examples: The data set.
        split: Which examples.
        device: Where to run.
        threads: Decoding threads.
        progress: Told inputs done and to do.
    """
    pieces, width = pieces_of(examples, experiment.input), flat_width(experiment)
    rows = pieces.indices(split)
    placed(network, device)
    parts = [np.empty((0, width), np.float32)]
    batches = list(batched(rows, EVALUATION_BATCH))
    done = 0
    for views in iterate_judged(examples, batches, experiment, threads=threads):
        with torch.inference_mode():
            inputs = [network_inputs(view, experiment.input, device) for view in views]
            logits = mean_over_views([network(view).float() for view in inputs])
        parts.append(flat(logits, width).cpu().numpy())
        done += len(logits)
        if progress is not None:
            progress(done, len(rows))
    return pieces.said(np.concatenate(parts), split, build_task(experiment.task))
