"""An encoder in stages computes what the library computes, for every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from orchestrator.errors import WeightsError
from orchestrator.models.building import build_backbone
from orchestrator.models.freezing import assert_frozen, last_stages, set_trainable
from orchestrator.models.text_backbone import TextBackbone
from orchestrator.models.tokens import Tokens
from orchestrator.models.weights import tensors_digest
from orchestrator.spec.parts import BackboneSpec
from tests.orchestrator.text_material import tiny_tokenizer, write_encoder

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
}
CONFIGS: dict[str, Callable[..., Any]] = {
    "bert": lambda **kw: transformers.BertConfig(**SMALL, **kw),
    "roberta": lambda **kw: transformers.RobertaConfig(**SMALL, **{**kw, "pad_token_id": 0}),
    "xlm-roberta": lambda **kw: transformers.XLMRobertaConfig(**SMALL, **kw),
    "camembert": lambda **kw: transformers.CamembertConfig(**SMALL, **kw),
    "distilbert": lambda **kw: transformers.DistilBertConfig(
        dim=32, n_layers=3, n_heads=2, hidden_dim=64, max_position_embeddings=66, **kw
    ),
    "electra": lambda **kw: transformers.ElectraConfig(embedding_size=16, **SMALL, **kw),
    "deberta": lambda **kw: transformers.DebertaConfig(
        relative_attention=True, pos_att_type=["c2p", "p2c"], **SMALL, **kw
    ),
    "deberta-v2": lambda **kw: transformers.DebertaV2Config(
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        pos_att_type=["c2p", "p2c"],
        share_att_key=True,
        conv_kernel_size=3,
        conv_act="gelu",
        **SMALL,
        **kw,
    ),
    "mpnet": lambda **kw: transformers.MPNetConfig(**SMALL, **kw),
    "modernbert": lambda **kw: transformers.ModernBertConfig(
        **SMALL,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
        global_attn_every_n_layers=2,
        local_attention=8,
        **kw,
    ),
}


def written(folder: Path, kind: str) -> BackboneSpec:
    folder.mkdir()
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = CONFIGS[kind](vocab_size=tokenizer.get_vocab_size(), pad_token_id=0)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return BackboneSpec(name=kind, folder=str(folder))


def some_tokens() -> Tokens:
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, 100, (3, 12)))
    mask = torch.arange(12) < torch.tensor([[12], [7], [3]])
    return Tokens(torch.where(mask, ids, 0), mask)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_stages_in_a_row_are_the_library(kind: str, tmp_path: Path) -> None:
    spec = written(tmp_path / kind, kind)
    model = transformers.AutoModel.from_pretrained(spec.folder).eval()
    backbone, tokens = build_backbone(spec), some_tokens()

    with torch.inference_mode():
        states = model(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        weights = tokens.mask[..., None].float()
        mean = (states * weights).sum(1) / weights.sum(1)
        torch.testing.assert_close(backbone.features(tokens, "mean"), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(backbone.features(tokens), states[:, 0], rtol=1e-4, atol=1e-5)
    own = {p.data_ptr() for p in backbone.parameters()}
    lacking = [n for n, p in model.named_parameters() if "pooler" not in n]
    assert len(own) == len(lacking), "every tensor but the pooler's belongs to a stage"


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_every_cut_hands_on_all_that_follows_needs(kind: str, tmp_path: Path) -> None:
    backbone, tokens = build_backbone(written(tmp_path / kind, kind)), some_tokens()
    assert isinstance(backbone, TextBackbone)
    with torch.inference_mode():
        expected = backbone.features(tokens, "multi-scale")
        torch.manual_seed(0)
        head = nn.Linear(expected.shape[1], 1000, bias=False)
        for cut in backbone.cuts:
            prefix = backbone.prefix(tokens, cut, "multi-scale")
            stored = backbone.to_stored(prefix.activations)
            assert stored.shape == (3, *backbone.activation_shape(cut))
            half = backbone.from_stored(stored.astype(np.float16), CPU)
            for read, tolerance in ((backbone.from_stored(stored, CPU), 1e-5), (half, 2e-2)):
                found = backbone.features_from(read, cut, "multi-scale", prefix.pooled)
                for a, b in ((found, expected), (head(found), head(expected))):
                    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_frozen_layers_stay_and_the_last_ones_move(kind: str, tmp_path: Path) -> None:
    backbone, tokens = build_backbone(written(tmp_path / kind, kind)), some_tokens()
    set_trainable(backbone, last_stages(backbone, 1))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone.train()
    assert_frozen(backbone)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    backbone.features(tokens, "mean").square().sum().backward()
    optimizer.step()

    moved = {n for n, t in backbone.state_dict().items() if not torch.equal(t, before[n])}
    assert moved
    assert {name.split(".")[1] for name in moved} == {"3"}
    assert_frozen(backbone)


def test_padding_changes_nothing(tmp_path: Path) -> None:
    backbone, tokens = build_backbone(written(tmp_path / "bert", "bert")), some_tokens()
    with torch.inference_mode():
        together = backbone.features(tokens, "multi-scale")
        for row, length in enumerate((12, 7, 3)):
            alone = Tokens(tokens.ids[row : row + 1, :length], tokens.mask[row : row + 1, :length])
            torch.testing.assert_close(
                backbone.features(alone, "multi-scale")[0], together[row], rtol=1e-4, atol=1e-5
            )


def test_random_weights_are_the_seeds(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "tiny")
    spec = BackboneSpec(name="tiny", folder=str(folder), weights="none")
    digests = [tensors_digest(build_backbone(spec, seed=seed)) for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "tiny")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 4}))
    with pytest.raises(WeightsError, match="16 tensors are missing"):
        build_backbone(BackboneSpec(name="tiny", folder=str(folder)))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Path("not a tensor")}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="could run code"):
        build_backbone(BackboneSpec(name="tiny", folder=str(folder)))
