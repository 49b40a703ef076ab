"""Weights files that others wrote, read without running a byte of them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from orchestrator.errors import WeightsError

# What training code wraps a model's own tensors in; the first one found is unwrapped.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file or a weights-only torch checkpoint, in its order.

    Wrappers (`state_dict`, `model`, …) and prefixes that all names share (`module.`, …) are taken
    off.

    Raises:
        WeightsError: No such file, not readable, no tensors in it, or it would need pickle.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file. Give a safetensors file or a checkpoint")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no named tensors. Save the model's state_dict() alone")
    return _without_prefixes(tensors)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as err:
        raise WeightsError(f"{path}: is no whole safetensors file ({err})") from err
    return tensors


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise WeightsError(
            f"{path}: refused, because reading it could run code (pickle). Convert it to "
            "safetensors where you trust it: safetensors.torch.save_file(model.state_dict(), …)"
        ) from err
    except (RuntimeError, EOFError, ValueError, KeyError) as err:
        raise WeightsError(f"{path}: is no readable torch checkpoint ({err})") from err
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not named tensors")
    return content


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
