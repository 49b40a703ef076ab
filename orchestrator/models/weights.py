"""Where a backbone's weights come from, and the digest that says which they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torchvision
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from orchestrator.errors import WeightsError
from orchestrator.models.backbone import Backbone
from orchestrator.models.checkpoint_file import read_tensors
from orchestrator.models.library_model import torchvision_name
from orchestrator.models.pyramid import PyramidResNet
from orchestrator.spec.backbone_table import library_of
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.pretrained import pretrained_file

# Old checkpoints lack them, and nothing that we do reads them.
_COUNTERS = "num_batches_tracked"
_NETWORK_ERRORS = (OSError, RuntimeError, ValueError, HfHubHTTPError)


def load_weights(model: nn.Module, spec: BackboneSpec) -> None:
    """Fills a library's model in place, as `spec.weights` says.

    `none` leaves the seeded initialisation. Classifier tensors are ignored. For `resnet50_fpn`
    the trunk is filled; its pyramid keeps its seeded initialisation.

    Args:
        model: From `library_model`, at its native size.
        spec: Name and weights.

    Raises:
        WeightsError: The weights cannot be had, are refused, or do not fit.
    """
    target = model.trunk if isinstance(model, PyramidResNet) else model
    ordered = False
    match spec.weights:
        case "none":
            return
        case "default":
            tensors = _downloaded(spec.name)
        case hub if hub.startswith("hub:"):
            tensors = _from_hub(hub.removeprefix("hub:"), spec.name)
        case path:
            tensors = read_tensors(pretrained_file(path))
            ordered = not path.endswith(".safetensors")  # which sorts its tensors by name
    _fill(target, tensors, source=f"{spec.name}: {spec.weights}", ordered=ordered)


def weights_digest(backbone: Backbone) -> str:
    """Which weights a backbone was given: `none` for random ones, else `tensors_digest`."""
    return "none" if backbone.spec.weights == "none" else tensors_digest(backbone)


def tensors_digest(backbone: Backbone) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, by the library's names, sorted.

    The library's names do not change when we split a model in another way. A backbone that is part
    of a larger model is named by the whole.
    """
    return backbone.origin or _digest(backbone, list(backbone.library_names))


def prefix_digest(backbone: Backbone, cut: int) -> str:
    """As `tensors_digest`, of the tensors of stages 0 … `cut` alone."""
    stages = tuple(f"stages.{stage}." for stage in range(cut + 1))
    return _digest(backbone, [name for name in backbone.library_names if name.startswith(stages)])


def _digest(backbone: Backbone, names: Sequence[str]) -> str:
    total = hashlib.sha256()
    own = backbone.state_dict()
    for library_name, name in sorted((backbone.library_names[name], name) for name in names):
        tensor = own[name].detach().cpu().contiguous()
        total.update(f"{library_name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return total.hexdigest()


def _downloaded(name: str) -> Mapping[str, Tensor]:
    """The library's pretrained tensors, downloaded or from its cache; never unpickled unsafely."""
    library = library_of(name)
    try:
        if library == "timm":
            return _timm_tensors(name)
        trunk = "resnet50" if library == "orchestrator" else torchvision_name(name)
        weights = torchvision.models.get_model_weights(trunk).DEFAULT
        tensors: Mapping[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except _NETWORK_ERRORS as err:
        raise WeightsError(
            f"{name}: its pretrained weights cannot be had ({_first_line(err)}). Without a network,"
            " give a local file: {name: " + name + ", weights: PATH.safetensors}; or weights: none"
        ) from err
    return tensors


def _from_hub(hub_id: str, name: str) -> Mapping[str, Tensor]:
    try:
        return _timm_tensors(f"hf-hub:{hub_id}")
    except _NETWORK_ERRORS as err:
        raise WeightsError(
            f"{name}: hub:{hub_id} cannot be had ({_first_line(err)}). It must be a timm model on "
            "the Hugging Face hub; without a network, give a local file: weights: PATH.safetensors"
        ) from err


def _timm_tensors(name: str) -> Mapping[str, Tensor]:
    """Tensors of a pretrained timm model; timm reads safetensors, else with `weights_only`."""
    with torch.random.fork_rng(devices=[]):
        model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    tensors: Mapping[str, Tensor] = model.state_dict()
    return tensors


def _first_line(err: BaseException) -> str:
    return (str(err) or type(err).__name__).splitlines()[0]


def _fill(model: nn.Module, given: Mapping[str, Tensor], *, source: str, ordered: bool) -> None:
    """Copies tensors into a model, by name or else, if theirs means anything, by order.

    Raises:
        WeightsError: Neither fits; lists what is missing, unexpected and of another shape.
    """
    classifier = _classifier_names(model)
    own = {name: t for name, t in model.state_dict().items() if not _ignored(name, classifier)}
    found = {name: t for name, t in given.items() if not _ignored(name, classifier)}
    by_name = found if _fits(own, found) else None
    if by_name is None and ordered:
        by_name = _by_order(own, found)
    if by_name is None:
        raise WeightsError(f"{source} does not fit. {_differences(own, found)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(by_name[name])


def _ignored(name: str, classifier: tuple[str, ...]) -> bool:
    return name.endswith(_COUNTERS) or name.rpartition(".")[0] in classifier


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Paths of the library's own last layers: timm says them, torchvision's end its modules."""
    config = getattr(model, "pretrained_cfg", None)
    if config is not None:
        names = config.get("classifier") or ()
        return (names,) if isinstance(names, str) else tuple(names)
    if isinstance(getattr(model, "fc", None), nn.Module):
        return ("fc",)
    linear = [name for name, child in model.named_modules() if isinstance(child, nn.Linear)]
    return tuple(linear[-1:])


def _fits(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    return own.keys() == found.keys() and all(own[n].shape == found[n].shape for n in own)


def _by_order(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The file's tensors under our names when only the names differ, else None.

    Number and shapes must agree one by one, and so must the last word of the names (`weight`,
    `running_mean`), which no two conventions spell differently. A classifier at the end of the
    file (a weight `[n, D]` and its bias) is left over and dropped.
    """
    rest = list(found.items())[len(own) :]
    if len(found) < len(own) or [t.ndim for _, t in rest] not in ([], [2], [2, 1]):
        return None
    pairs = list(zip(own.items(), found.items(), strict=False))
    for (own_name, mine), (name, theirs) in pairs:
        if mine.shape != theirs.shape or own_name.split(".")[-1] != name.split(".")[-1]:
            return None
    return {own_name: theirs for (own_name, _), (_, theirs) in pairs}


def _differences(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in found and own[name].shape != found[name].shape
    ]
    lists = {
        "missing": [name for name in own if name not in found],
        "unexpected": [name for name in found if name not in own],
        "of another shape": shapes,
    }
    said = [f"{len(names)} {kind}: {_some(names)}" for kind, names in lists.items() if names]
    return "; ".join(said) + ". Is it a file for another backbone?"


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
