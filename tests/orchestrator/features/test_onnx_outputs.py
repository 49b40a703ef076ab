"""What ONNX Runtime says is taken where it is what torch says, and nowhere else."""

from __future__ import annotations

import torch

from orchestrator.features.onnx_outputs import export, known_export
from orchestrator.models.building import build_backbone
from orchestrator.spec.parts import BackboneSpec


def test_outputs_that_disagree_are_not_taken_now_or_later() -> None:
    spec = BackboneSpec(name="mobilenetv3_small_050", weights="none")
    backbone, other = (build_backbone(spec, size=32).eval() for _ in range(2))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (expected,) = backbone.outputs(images, ["last"])
    wrong = expected + 2e-3 * expected.abs().max()

    assert export(backbone, ["last"], images, [wrong], threads=1) is None
    assert known_export(backbone, ["last"]) is None
    assert export(backbone, ["last"], images, [expected], threads=1) is None, "it is remembered"

    with torch.no_grad():
        (theirs,) = other.outputs(images, ["last"])
    found = export(other, ["last"], images, [theirs], threads=1)
    assert found is not None
    assert known_export(other, ["last"]) is found
    torch.testing.assert_close(found(images)[0], theirs, rtol=1e-3, atol=1e-4)
