"""Checkpoints of a trial: one folder an epoch, written whole or not at all, verified when read.

    epoch-0007/weights.safetensors     the tensors that the trial can change
    epoch-0007/optimizer.safetensors   moments and step counts; the last step's weights, if
                                       weights.safetensors holds their average
    epoch-0007/state.json              position, schedule, rates, rows of all epochs so far
    epoch-0007/validation.safetensors  probabilities of the validation examples at this epoch
    epoch-0007/manifest.json           SHA-256 of the others

The pretrained tensors are not repeated: the Experiment names them by digest. Random numbers need
no state of their own: every epoch seeds them from (seed, epoch), so the position restores them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from orchestrator.errors import IntegrityError
from orchestrator.spec import mirror
from orchestrator.spec.durable import file_digest, sync_file, sync_folder, write_json

MANIFEST = "manifest.json"
_LAST = "last."
FILES = {
    "weights.safetensors",
    "optimizer.safetensors",
    "validation.safetensors",
    "state.json",
}


@dataclass(frozen=True)
class Checkpoint:
    """What one epoch left behind, read back and verified."""

    folder: Path
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    validation: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def last(self) -> dict[str, Tensor]:
        """The last step's weights, where `weights` holds averages."""
        return {
            name.removeprefix(_LAST): tensor
            for name, tensor in self.optimizer.items()
            if name.startswith(_LAST)
        }


def folder_name(epoch: int) -> str:
    """The folder of an epoch, counted from 1 over all phases."""
    return f"epoch-{epoch:04d}"


def write_checkpoint(
    root: Path,
    epoch: int,
    *,
    weights: dict[str, Tensor],
    optimizer: Optimizer | None,
    schedule: LRScheduler | None,
    validation: dict[str, Tensor],
    state: dict[str, Any],
    last: dict[str, Tensor] | None = None,
) -> Path:
    """Write the checkpoint of `epoch` below `root`; a folder of that name is replaced.

    Args:
        root: The trial's checkpoint folder.
        epoch: Counted from 1.
        weights: What the trial can change.
        optimizer: Its tensors are saved, and the options of its groups; None when the trial has
            ended, and nothing goes on from here.
        schedule: The rates' schedule; None likewise.
        validation: Outputs to keep with this epoch.
        state: Plain JSON data.
        last: The last step's weights, where `weights` holds averages.
    """
    final = root / folder_name(epoch)
    temporary = root / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    moments, options = _split_optimizer(optimizer) if optimizer is not None else ({}, [])
    for name, tensors in (
        ("weights", weights),
        ("optimizer", {**moments, **{_LAST + k: v for k, v in (last or {}).items()}}),
        ("validation", validation),
    ):
        ready = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(ready, temporary / f"{name}.safetensors")
    content = {**state, "optimizer_groups": options, "schedule": None}
    if schedule is not None:
        content["schedule"] = schedule.state_dict()
    (temporary / "state.json").write_text(json.dumps(content))
    names = sorted(path.name for path in temporary.iterdir())
    for name in names:
        sync_file(temporary / name)
    write_json(temporary / MANIFEST, {name: file_digest(temporary / name) for name in names})
    mirror.put_folder(temporary, final, last=MANIFEST)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    sync_folder(root)
    return final


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`, or None when it is missing, incomplete or damaged."""
    try:
        mirror.refresh_folder(folder, last=MANIFEST, digests=dict)
        manifest = json.loads((folder / MANIFEST).read_bytes())
        intact = manifest.keys() == FILES and all(
            file_digest(folder / name) == digest for name, digest in manifest.items()
        )
    except (OSError, ValueError, TypeError, AttributeError, IntegrityError):
        return None
    if not intact:
        return None
    return Checkpoint(
        folder=folder,
        weights=load_file(folder / "weights.safetensors"),
        optimizer=load_file(folder / "optimizer.safetensors"),
        validation=load_file(folder / "validation.safetensors"),
        state=json.loads((folder / "state.json").read_bytes()),
    )


def newest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest intact checkpoint below `root` whose best epoch is intact as well, if any.

    Damaged ones are passed over: a trial can repeat epochs, but not end without its best one.
    """
    for name in sorted(_epochs(root), reverse=True):
        checkpoint = read_checkpoint(root / name)
        if checkpoint is None:
            continue
        best = root / folder_name(checkpoint.state["best_epoch"])
        if best == checkpoint.folder or read_checkpoint(best) is not None:
            return checkpoint
    return None


def keep_only(root: Path, epochs: set[int]) -> None:
    """Delete every checkpoint but those of `epochs`."""
    names = {folder_name(epoch) for epoch in epochs}
    for name in _epochs(root) - names:
        mirror.remove_folder(root / name)


def _epochs(root: Path) -> set[str]:
    """The names of a trial's checkpoints."""
    return {name for name in mirror.names(root) if name.startswith("epoch-")}


def restore_optimizer(checkpoint: Checkpoint, optimizer: Optimizer, schedule: LRScheduler) -> None:
    """Put the moments, rates and position of the schedule back where they were."""
    groups = optimizer.state_dict()["param_groups"]
    options = checkpoint.state["optimizer_groups"]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.optimizer.items():
        if name.startswith(_LAST):
            continue
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    merged = [{**group, **saved} for group, saved in zip(groups, options, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": merged})
    # Fused kernels pair elements as they lie in memory; files know one order only.
    for parameter, moments in optimizer.state.items():
        for name, tensor in moments.items():
            if tensor.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter.detach()).copy_(tensor)
    schedule.load_state_dict(checkpoint.state["schedule"])


def _split_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as flat tensors, and the options of its groups as JSON data."""
    content = optimizer.state_dict()
    tensors = {
        f"{index}.{key}": torch.as_tensor(value)
        for index, values in content["state"].items()
        for key, value in values.items()
        if value is not None
    }
    options = [
        {k: v for k, v in group.items() if k != "params"} for group in content["param_groups"]
    ]
    return tensors, options
