import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch

from orchestrator.errors import SpecError, WeightsError
from orchestrator.models.backbone import Backbone
from orchestrator.models.clip_pretrained import pretrained_table
from orchestrator.models.clip_visual import split_visual
from orchestrator.spec.backbones import backbone_modality, facts_of
from orchestrator.spec.clip_models import (
    BEST_FOR,
    TABLE_PATH,
    architectures,
    clip_config,
    clip_contract,
    parse_clip,
)

ROOT = Path("/")


def test_the_table_is_what_the_installed_library_says() -> None:
    written = json.loads(TABLE_PATH.read_text())
    assert {k: written[k] for k in ("columns", "wants", "tags")} == pretrained_table()
    assert set(architectures()) == set(open_clip.list_models())


@pytest.mark.parametrize("reference", BEST_FOR)
def test_every_recommended_reference_can_be_named_and_cut(reference: str) -> None:
    spec = parse_clip(reference, base=ROOT)
    assert backbone_modality(spec) == "image"
    assert facts_of(spec).best_for


@pytest.mark.parametrize("architecture", ["ViT-B-32", "ViT-L-14-336", "RN50", "RN50x4"])
def test_facts_read_from_the_configuration_are_those_of_the_built_tower(architecture: str) -> None:
    spec = parse_clip(f"clip:{architecture}", base=ROOT, weights="none")
    facts, model = facts_of(spec), clip_config(spec)["model_cfg"]
    with torch.device("meta"):
        visual = open_clip.model._build_vision_tower(model["embed_dim"], model["vision_cfg"]).eval()
    backbone = Backbone(
        split_visual(visual), spec=spec, contract=clip_contract(spec), library=visual
    )
    assert facts.n_stages == backbone.n_stages
    assert facts.feature_width == backbone.feature_width("last")
    assert facts.multi_scale_width == backbone.feature_width("multi-scale")
    assert facts.n_parameters == sum(p.numel() for p in backbone.parameters())


def test_what_pretrained_weights_want_of_an_image_is_in_the_contract() -> None:
    siglip = clip_contract(parse_clip("clip:ViT-B-16-SigLIP/webli", base=ROOT))
    assert (siglip.resize, siglip.mean) == ("squash", (0.5, 0.5, 0.5))
    plain = clip_contract(parse_clip("clip:ViT-B-32/laion2b_s34b_b79k", base=ROOT))
    assert (plain.resize, plain.interpolation, plain.size) == ("shortest", "bicubic", 224)


def test_a_folder_is_named_with_the_prefix_or_without(clip_folder: Path) -> None:
    spec = parse_clip(clip_folder.name, base=clip_folder.parent)
    assert spec == parse_clip(f"clip:{clip_folder}", base=ROOT)
    assert (spec.name, spec.folder) == (f"clip:{clip_folder.name}", str(clip_folder))
    assert facts_of(spec).n_stages == 3


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("clip:ViT-B32/openai", "Did you mean 'ViT-B-32'"),
        ("clip:ViT-B-32/laion2b", "Did you mean 'laion2b_e16'"),
        ("clip:ViT-B-32", "says no pretrained weights"),
        ("clip:ViT-B-32/openai", "Use clip:ViT-B-32-quickgelu/openai"),
    ],
)
def test_a_wrong_reference_is_told_what_is_near(reference: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_clip(reference, base=ROOT)


def test_a_tower_that_no_rule_cuts_is_one_stage() -> None:
    for name in ("ViT-B-16-SigLIP/webli", "coca_ViT-B-32/laion2b_s13b_b90k"):
        facts = facts_of(parse_clip(f"clip:{name}", base=ROOT))
        assert facts.n_stages == 1
        assert facts.n_parameters > 50e6


def test_a_damaged_configuration_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 3}}')
    with pytest.raises(WeightsError, match="lacks embed_dim, vision_cfg or text_cfg"):
        parse_clip(str(tmp_path), base=ROOT)


def test_naming_a_clip_imports_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from orchestrator.spec.backbones import facts_of;"
        "from orchestrator.spec.clip_models import parse_clip;"
        "facts_of(parse_clip('clip:ViT-L-14/laion2b_s32b_b82k', base=Path('/')));"
        "sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
