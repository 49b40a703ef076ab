"""Zero-shot by our code against open_clip's own, on a model that knows coloured shapes."""

import json
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from orchestrator.data.transforms import eval_pixels_of, normalized
from orchestrator.errors import IntegrityError, SpecError, WeightsError
from orchestrator.models.building import build_backbone
from orchestrator.models.clip import Clip, _loading, ensure_embeddings, load_clip
from orchestrator.models.weights import tensors_digest
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.clip_models import parse_clip
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.prompts import TEMPLATES, class_prompts
from tests.orchestrator.clip_material import CONTEXT, HELD_OUT, SEEN, draw, label_of, write_shapes

LABELS = [label_of(pair) for pair in (*SEEN, *sorted(HELD_OUT))]


@pytest.fixture(scope="module")
def spec(clip_folder: Path) -> BackboneSpec:
    return parse_clip(str(clip_folder), base=Path("/"))


@pytest.fixture(scope="module")
def clip(spec: BackboneSpec) -> Clip:
    return load_clip(spec)


@pytest.fixture(scope="module")
def reference(clip_folder: Path) -> Any:
    """open_clip's own model, preprocessing and tokenizer."""
    name = f"local-dir:{clip_folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """Pictures of combinations that training has never seen, with their labels; 40 px."""
    root = write_shapes(
        tmp_path_factory.mktemp("held-out"), tuple(sorted(HELD_OUT)), 15, seed=3, size=40
    )
    return [(path.parent.name, path) for path in sorted(root.rglob("*.png"))]


def inputs_of(clip: Clip, paths: list[Path]) -> torch.Tensor:
    pixels = np.stack([eval_pixels_of(path, clip.input) for path in paths])
    return torch.from_numpy(normalized(pixels, clip.input))


def test_zero_shot_on_combinations_never_seen_is_far_above_chance(
    clip: Clip, pictures: list[tuple[str, Path]]
) -> None:
    made = clip.label_embeddings(class_prompts(LABELS, "default", None))
    logits = made.logits(clip.image_features(inputs_of(clip, [path for _, path in pictures])))
    right = [LABELS[i] == label for i, (label, _) in zip(logits.argmax(1), pictures, strict=True)]
    assert np.mean(right) > 15 / len(LABELS)  # chance is one in 36


@pytest.mark.parametrize("templates", ["default", "plain"])
def test_label_embeddings_are_those_of_open_clips_own_builder(
    clip: Clip, reference: Any, templates: Any
) -> None:
    model, _, tokenizer = reference
    names = [label.replace("_", " ") for label in LABELS]
    expected = open_clip.build_zero_shot_classifier(model, tokenizer, names, TEMPLATES[templates])
    made = clip.label_embeddings(class_prompts(LABELS, templates, None))
    torch.testing.assert_close(made.directions, expected.T, rtol=0, atol=2e-6)
    torch.testing.assert_close(
        made.directions.norm(dim=1), torch.ones(len(LABELS)), rtol=0, atol=1e-6
    )


def test_probabilities_are_the_models_own_from_its_own_preprocessing(
    clip: Clip, reference: Any, pictures: list[tuple[str, Path]]
) -> None:
    model, preprocess, tokenizer = reference
    paths = [path for _, path in pictures[:20]]
    images = torch.stack([preprocess(Image.open(path)) for path in paths])
    prompts = {label: (f"a photo of a {label.replace('_', ' ')}.",) for label in LABELS[:9]}
    texts = tokenizer([text for some in prompts.values() for text in some])
    with torch.no_grad():
        expected = model.get_logits(images, texts)[0].softmax(1)
    made = clip.label_embeddings(prompts)
    ours = made.logits(clip.image_features(inputs_of(clip, paths))).softmax(1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (61, 40), (33, 90)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_images_are_prepared_as_open_clip_prepares_them(
    clip: Clip, size: tuple[int, int], mode: str, tmp_path: Path
) -> None:
    contract = clip.input.model_copy(update={"resize": mode})
    rng = np.random.default_rng(0)
    picture = draw(("red", "ring"), rng, size=96).resize(size)
    picture.save(tmp_path / "picture.png")
    transform = open_clip.transform.image_transform(
        contract.size,
        is_train=False,
        mean=contract.mean,
        std=contract.std,
        resize_mode=mode,
        interpolation="bicubic",
    )
    ours = normalized(eval_pixels_of(tmp_path / "picture.png", contract)[None], contract)[0]
    np.testing.assert_allclose(ours, transform(picture).numpy(), atol=1e-5)


def test_several_prompts_of_one_label_weigh_alike_whatever_other_labels_have(clip: Clip) -> None:
    alone = clip.label_embeddings({"x": ("a red circle", "the red circle.")})
    beside = clip.label_embeddings(
        {"y": ("a blue ring",), "x": ("a red circle", "the red circle."), "z": ("a",) * 3}
    )
    torch.testing.assert_close(beside.directions[1], alone.directions[0], rtol=0, atol=1e-6)


def test_too_long_prompts_are_all_named_with_their_tokens_and_nothing_is_cut(clip: Clip) -> None:
    fits = " ".join(["red"] * (CONTEXT - 2))
    clip.label_embeddings({"x": (fits,)})
    with pytest.raises(SpecError) as refused:
        clip.label_embeddings({"x": (f"{fits} red",), "y": ("a",), "z": (f"{fits} blue ring",)})
    said = str(refused.value)
    assert f"has {CONTEXT + 1} tokens; clip:coloured-shapes reads {CONTEXT}" in said
    assert f"has {CONTEXT + 2} tokens" in said
    assert "nothing is cut off" in said


@pytest.mark.parametrize("name", ["simple", "words"])
def test_tokens_are_counted_as_the_tokenizer_would_make_them(
    clip: Clip, reference: Any, name: str
) -> None:
    tokenizer = open_clip.tokenizer.SimpleTokenizer() if name == "simple" else reference[2]
    counting = Clip(clip.spec, clip.model, tokenizer, clip.input, clip.digest)
    for text in ("a photo of a red circle.", "Ring!", "x & y  z"):
        made = tokenizer([text], context_length=77)[0]
        pad = 0
        assert counting.n_tokens(text) == int((made != pad).sum())


def test_the_scale_and_the_bias_are_the_models(clip_folder: Path, tmp_path: Path) -> None:
    def biased(content: dict[str, Any]) -> None:
        content["model_cfg"]["init_logit_bias"] = -3.5

    folder = copied(clip_folder, tmp_path, biased)
    clip = load_clip(parse_clip(str(folder), base=Path("/")))
    made = clip.label_embeddings({"x": ("a red circle",), "y": ("a ring",)})
    assert made.scale == pytest.approx(float(clip.model.logit_scale.exp()))
    assert made.bias == 0.0  # these weights have none: open_clip fills it with zero
    clip.model.logit_bias.data.fill_(-3.5)
    biased_logits = clip.label_embeddings({"x": ("a red circle",)}).logits(torch.zeros(2, 32))
    torch.testing.assert_close(biased_logits, torch.full((2, 1), -3.5))


def test_the_digest_covers_both_towers_and_the_tokenizer(
    clip: Clip, clip_folder: Path, tmp_path: Path
) -> None:
    def other(content: dict[str, Any]) -> None:
        content["model_cfg"]["quick_gelu"] = True

    changed = load_clip(parse_clip(str(copied(clip_folder, tmp_path, other)), base=Path("/")))
    same = load_clip(
        parse_clip(str(copied(clip_folder, tmp_path / "b", lambda _: None)), base=Path("/"))
    )
    assert changed.digest != clip.digest
    assert same.digest == clip.digest


def test_a_visual_tower_in_stages_computes_what_open_clip_does(
    clip: Clip, spec: BackboneSpec
) -> None:
    backbone = build_backbone(spec)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = clip.model.encode_image(images)
        torch.testing.assert_close(backbone.features(images), expected)
        for cut in backbone.cuts:
            prefix = backbone.prefix(images, cut)
            torch.testing.assert_close(backbone.features_from(prefix.activations, cut), expected)
    assert tensors_digest(backbone) == clip.digest


def test_another_image_size_resamples_the_positions_as_open_clip_does(spec: BackboneSpec) -> None:
    backbone = build_backbone(spec, size=48)
    model = open_clip.create_model(f"local-dir:{spec.folder}", force_image_size=48).eval()
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(backbone.features(images), model.encode_image(images))
    assert tensors_digest(backbone) == tensors_digest(build_backbone(spec))


def test_a_resnet_tower_in_stages_computes_what_open_clip_does_at_its_own_size_alone(
    clip_folder: Path, tmp_path: Path
) -> None:
    vision = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None}

    def resnet(content: dict[str, Any]) -> None:
        content["model_cfg"]["vision_cfg"] = vision

    folder = copied(clip_folder, tmp_path, resnet)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    model = open_clip.CLIP(**config).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    spec = parse_clip(str(folder), base=Path("/"))
    backbone = build_backbone(spec)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(backbone.features(images), model.encode_image(images))
    assert facts_of(spec).n_parameters == sum(p.numel() for p in backbone.parameters())
    with pytest.raises(SpecError, match=r"does not take images of 96 pixels.*Use its own size, 64"):
        build_backbone(spec, size=96)


def test_embeddings_are_made_once_and_read_after(
    clip: Clip, spec: BackboneSpec, tmp_path: Path
) -> None:
    prompts = class_prompts(LABELS[:4], "plain", None)
    made = ensure_embeddings(tmp_path, spec, clip.digest, prompts)
    gone = spec.model_copy(update={"folder": "/nowhere"})
    again = ensure_embeddings(tmp_path, gone, clip.digest, prompts)  # no model is loaded
    assert torch.equal(made.directions, again.directions)
    assert (made.scale, made.bias) == (again.scale, again.bias)


def test_embeddings_of_changed_weights_are_refused(spec: BackboneSpec, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="have changed since the sweep was planned"):
        ensure_embeddings(tmp_path, spec, "0" * 64, {"x": ("a red circle",)})


def test_a_pickled_checkpoint_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = copied(clip_folder, tmp_path, lambda _: None)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": Dangerous()}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(WeightsError, match="could run code"):
        load_clip(parse_clip(str(folder), base=Path("/")))


def test_a_folder_without_weights_is_refused_and_not_initialised_at_random(
    clip_folder: Path, tmp_path: Path
) -> None:
    folder = copied(clip_folder, tmp_path, lambda _: None)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_clip(parse_clip(str(folder), base=Path("/")))


def test_a_tokenizer_that_wants_to_run_code_does_not(clip_folder: Path, tmp_path: Path) -> None:
    def trusting(content: dict[str, Any]) -> None:
        content["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}

    folder = copied(clip_folder, tmp_path, trusting)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}
    del config["tokenizer_class"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_clip(parse_clip(str(folder), base=Path("/")))


class Dangerous:
    """What a pickle may do."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (print, ("it ran",))


def copied(folder: Path, root: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the model whose configuration was changed."""
    target = root / folder.name
    shutil.copytree(folder, target)
    config = target / "open_clip_config.json"
    content = json.loads(config.read_text())
    change(content)
    config.write_text(json.dumps(content))
    return target


def test_whoever_builds_another_backbone_does_not_pay_for_open_clip() -> None:
    code = (
        "import sys; import orchestrator.models.building, orchestrator.runtime.worker_io;"
        "import orchestrator.bundle.writing;"
        "sys.exit('open_clip' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_while_a_clip_is_loaded_only_its_own_thread_is_quiet(
    spec: BackboneSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters))
    with _loading(spec):
        logging.warning("of the library")
        logging.getLogger("another").warning("of another library")
        for say in (logging.warning, logging.getLogger("request").error):
            other = threading.Thread(target=say, args=("of another thread",))
            other.start()
            other.join()
    logging.warning("afterwards")
    assert [record.getMessage() for record in caplog.records] == [
        "of another library",
        "of another thread",
        "of another thread",
        "afterwards",
    ]
    assert (list(root.handlers), list(root.filters)) == before


def test_a_warning_that_has_no_handler_is_still_told_while_a_clip_is_loaded(
    spec: BackboneSpec, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with _loading(spec):
        logging.warning("of the library")
        logging.getLogger("request").warning("of a request")
    assert capfd.readouterr().err == "of a request\n"
