"""Which number format is meant on which device."""

from __future__ import annotations

import pytest
import torch

from orchestrator.training.precision import autocast, resolve_precision

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("wanted", "meant"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp32")]
)
def test_on_a_cpu_only_bf16_leaves_full_precision(wanted: str, meant: str) -> None:
    assert resolve_precision(wanted, CPU) == meant


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_a_format_that_is_named_is_taken(wanted: str) -> None:
    assert resolve_precision(wanted, GPU) == wanted


@pytest.mark.gpu
def test_auto_is_bf16_where_the_gpu_has_it() -> None:
    expected = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp32"
    assert resolve_precision("auto", GPU) == expected


def test_forward_passes_run_in_the_format() -> None:
    a = torch.randn(4, 4)
    with autocast("bf16", CPU):
        assert (a @ a).dtype is torch.bfloat16
    with autocast("fp32", CPU):
        assert (a @ a).dtype is torch.float32
