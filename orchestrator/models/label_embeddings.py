"""What a CLIP's text tower makes of labels: the weights of a head that nobody has trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from orchestrator.errors import IntegrityError
from orchestrator.spec import mirror
from orchestrator.spec.durable import write_durably
from orchestrator.spec.frozen import digest_of


@dataclass(frozen=True)
class LabelEmbeddings:
    """One direction a label, and the model's own scale and bias of its logits.

    `logits = scale * unit image features @ directions.T + bias`.

    Attributes:
        directions: float32 [C, D], each row of length one.
        scale: The model's `logit_scale`, no logarithm.
        bias: The model's `logit_bias`; 0 where it has none.
    """

    directions: Tensor
    scale: float
    bias: float

    @property
    def weight(self) -> Tensor:
        """Weights [C, D] of a linear layer over unit features."""
        return self.scale * self.directions

    def logits(self, unit_features: Tensor) -> Tensor:
        """Logits float32 [N, C] of image features of length one, [N, D]."""
        return torch.addmm(
            torch.full((len(self.directions),), self.bias, device=unit_features.device),
            unit_features,
            self.weight.T,
        )


def embeddings_key(model_digest: str, prompts: Mapping[str, Sequence[str]]) -> str:
    """Names label embeddings by what they are made of; the labels' names are not part of it."""
    return digest_of({"model": model_digest, "prompts": [list(p) for p in prompts.values()]})


def write_embeddings(folder: Path, key: str, found: LabelEmbeddings) -> None:
    """Keep label embeddings in a folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    content = save(
        {
            "directions": found.directions.cpu().contiguous(),
            "scale": torch.tensor(found.scale, dtype=torch.float64),
            "bias": torch.tensor(found.bias, dtype=torch.float64),
        }
    )
    write_durably(_path(folder, key), content)


def read_embeddings(folder: Path, key: str) -> LabelEmbeddings | None:
    """The label embeddings of this name, or None where there are none.

    Raises:
        IntegrityError: The file is damaged.
    """
    path = _path(folder, key)
    try:
        tensors = load(mirror.fetch(path).read_bytes())
        return LabelEmbeddings(
            tensors["directions"], float(tensors["scale"]), float(tensors["bias"])
        )
    except FileNotFoundError:
        return None
    except Exception as err:  # whatever safetensors raises
        raise IntegrityError(f"{path} is damaged ({err}). Delete it, and it is made anew") from err


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key[:32]}.safetensors"
