"""`orchestrator init DATA`: write a commented spec for this data."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any, get_args

from jobs.terminal import Terminal
from orchestrator.errors import SpecError
from orchestrator.spec.parts import TaskKind, by_position, metrics_of, modality_of
from orchestrator.spec.reading import read_yaml
from orchestrator.spec.text_encoders import TEXT_ENCODERS

TEMPLATE = """\
# A sweep. Run it with `orchestrator sweep {file}`; the same command continues it.
name: {name}
task: {task}

data:
  train: {train}
  validation: 0.15            # a share of train (by seed and content), or a path of its own
  # test: path/to/test        # read once, by the winner, after the search

defaults: {{seed: 0}}           # any parameter of a block below, for all blocks that have it

{search}
budget: {{trials: 16, minutes: 60}}
objective: {{metric: {metric}}}       # {metrics}
tuner: {{searcher: optuna, scheduler: asha}}
workers: {{per_trial: 1, cpus: 1, gpus: 0}}
storage: runs                 # a folder that all nodes of the cluster see, or s3://…
"""

SEARCH = {
    "image": """\
search:                       # one block a strategy; lists and ranges are searched
  - strategy: feature-extraction          # the head alone, on stored features: minutes
    backbone: [mobilenetv3_small_100, tf_efficientnet_lite0]   # `orchestrator backbones`
    head_lr: {log: [1e-3, 3e-3]}
    head: [linear, mlp]
    pooling: [last, multi-scale]
  - strategy: partial                     # head warm-up, then the last stages
    backbone: [tf_efficientnet_lite0]     # or {name: …, weights: none | FILE | hub:ID}
    unfreeze: [1, 2, 3]
    backbone_lr: {log: [1e-5, 1e-4]}
  # - strategy: full                      # head warm-up, then everything, early stages slowest
  #   backbone: [tf_efficientnet_lite0]
  # - strategy: domain-adaptive           # go on pretraining on your own images, then fine-tune
  #   backbone: [tf_efficientnet_lite0]
  #   then: partial
  #   pretraining: {epochs: 20}           # corpus: [files, folders]; else the training images
  # - strategy: scratch                   # the baseline that gains are quoted against
  #   backbone: [tf_efficientnet_lite0]
  # - strategy: zero-shot                 # what a CLIP says of the labels, without training
  #   backbone: clip:ViT-B-32/laion2b_s34b_b79k
""",
    "text": """\
search:                       # one block a strategy; lists and ranges are searched
  - strategy: feature-extraction          # the head alone, on stored features: minutes
    backbone: ENCODER   # an id on the hub, or a local folder
    head_lr: {log: [3e-4, 3e-3]}
    pooling: [mean, last]
  - strategy: partial                     # head warm-up, then the last layers
    backbone: ENCODER
    unfreeze: [1, 2, 4]
    backbone_lr: {log: [2e-5, 5e-5]}
  # - strategy: full                      # head warm-up, then everything, layer-wise rates
  #   backbone: ENCODER
  # - strategy: domain-adaptive           # go on pretraining on your own texts, then fine-tune
  #   backbone: ENCODER
  #   then: full
  #   pretraining: {epochs: 3}            # corpus: [files, globs, tables]; else the training texts
  # - strategy: scratch                   # the baseline that gains are quoted against
  #   backbone: ENCODER
""".replace("ENCODER", TEXT_ENCODERS[0]),
    "spans": """\
search:                       # one block a strategy; lists and ranges are searched
  - strategy: feature-extraction          # the head alone, on stored hidden states
    backbone: ENCODER   # an id on the hub, or a local folder
    head_lr: {log: [1e-3, 1e-2]}
  - strategy: full                        # head warm-up, then everything, layer-wise rates
    backbone: ENCODER
    backbone_lr: {log: [2e-5, 1e-4]}
    max_length: 256                       # tokens of a window; longer texts have several,
    overlap: 64                           # which share so many tokens with the next
  # - strategy: partial                   # head warm-up, then the last layers
  #   backbone: ENCODER
  #   unfreeze: [2, 4]
  # - strategy: scratch                   # the baseline that gains are quoted against
  #   backbone: ENCODER
""".replace("ENCODER", TEXT_ENCODERS[0]),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("data", metavar="DATA", help="as `data.train` takes it")
    parser.add_argument(
        "--task",
        choices=[task for task in get_args(TaskKind) if not task.startswith("zero-shot")],
        default="image-classification",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("sweep.yaml"), help="(default: %(default)s)"
    )


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[int, Any]:
    """Run the verb; an existing file is never overwritten."""
    out: Path = args.out
    if out.exists():
        raise SpecError(f"{out} is there already. Choose another file with --out, or move it away")
    local = "://" not in args.data and not args.data.startswith("hub:")
    if local and not Path(args.data).expanduser().exists():
        raise SpecError(
            f"{args.data}: no such file or folder. A data set on the hub is written hub:owner/name"
        )
    train = (
        os.path.relpath(Path(args.data).expanduser(), out.absolute().parent) if local else args.data
    )
    text = TEMPLATE.format(
        file=shlex.quote(str(out)),
        name=_scalar(_name(args.data)),
        task=args.task,
        train=_scalar(train),
        search=SEARCH["spans" if by_position(args.task) else modality_of(args.task)],
        metric="roc_auc" if "multilabel" in args.task else metrics_of(args.task)[0],
        metrics=", ".join(metrics_of(args.task)),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    terminal.show(f"wrote {out}; next: orchestrator plan {shlex.quote(str(out))}")
    return 0, {"spec": str(out)}


def _scalar(text: str) -> str:
    """`text` as YAML reads it back: plain where that works, else quoted."""
    try:
        plain = read_yaml(f"{text}  #") == text
    except SpecError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def _name(data: str) -> str:
    parts = [part for part in re.split(r"[/:]", data) if part not in ("", "train", ".", "..")]
    words = re.sub(r"[^a-z0-9]+", "-", parts[-1].lower()).strip("-") if parts else ""
    return (words or "sweep")[:64]
