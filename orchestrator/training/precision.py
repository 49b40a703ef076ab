"""Which number format a trial computes in on which device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]


def resolve_precision(wanted: str, device: torch.device) -> Precision:
    """The format that `wanted` means on `device`.

    `auto` is bf16 on GPUs with units for it and fp32 elsewhere; fp16 needs a GPU; bf16 on a CPU
    is honoured, though processors without bf16 units are slower in it.
    """
    on_gpu = device.type == "cuda"
    if wanted == "auto":
        has_units = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_units else "fp32"
    if wanted == "fp16":
        return "fp16" if on_gpu else "fp32"
    return "bf16" if wanted == "bf16" else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which forward passes run."""
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)
