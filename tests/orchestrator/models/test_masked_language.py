"""The head of every family tells what the library's own model tells, without the other tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from orchestrator.models.building import build_backbone
from orchestrator.models.masked_language import build_masked_language_model, save_encoder
from orchestrator.models.weights import tensors_digest
from orchestrator.spec.parts import BackboneSpec
from tests.orchestrator.models.test_text_backbone import CONFIGS, some_tokens
from tests.orchestrator.text_material import tiny_tokenizer

HEADS = [(kind, {}) for kind in CONFIGS] + [
    (kind, {"legacy": False}) for kind in ("deberta", "deberta-v2")
]


def written(folder: Path, kind: str, changes: dict[str, bool], *, headed: bool) -> BackboneSpec:
    """A random encoder, with a head of its own or without."""
    folder.mkdir()
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = CONFIGS[kind](vocab_size=tokenizer.get_vocab_size(), pad_token_id=0, **changes)
    torch.manual_seed(0)
    architecture = transformers.AutoModelForMaskedLM if headed else transformers.AutoModel
    architecture.from_config(config).save_pretrained(folder)
    return BackboneSpec(name=kind, folder=str(folder))


@pytest.mark.parametrize(("kind", "changes"), HEADS)
def test_chosen_tokens_are_told_as_the_library_tells_all(
    kind: str, changes: dict[str, bool], tmp_path: Path
) -> None:
    spec = written(tmp_path / kind, kind, changes, headed=True)
    model, tokens = build_masked_language_model(spec, seed=1), some_tokens()
    assert model.has_own_head
    whole = transformers.AutoModelForMaskedLM.from_pretrained(spec.folder).eval()
    chosen = tokens.mask & (torch.arange(12) % 3 == 1)
    with torch.inference_mode():
        expected = whole(input_ids=tokens.ids, attention_mask=tokens.mask.long()).logits[chosen]
        torch.testing.assert_close(model(tokens, chosen), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "changes"), HEADS)
def test_a_new_head_learns_on_a_frozen_encoder_and_leaves_it_a_backbone(
    kind: str, changes: dict[str, bool], tmp_path: Path
) -> None:
    spec = written(tmp_path / kind, kind, changes, headed=False)
    model, tokens = build_masked_language_model(spec, seed=1), some_tokens()
    assert not model.has_own_head
    bias = model.output_bias()
    assert bias is not None
    with torch.no_grad():
        states = model.encode(tokens)[tokens.mask]
        before = model.tell(states)
        bias[7] += 5
        torch.testing.assert_close((model.tell(states) - before)[:, 7], torch.full((22,), 5.0))
    head = model.head_parameters()
    loss = torch.nn.functional.cross_entropy(model.tell(states), tokens.ids[tokens.mask])
    grads = torch.autograd.grad(loss, head, allow_unused=True)
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)

    (tmp_path / "saved").mkdir()
    save_encoder(model, spec, tmp_path / "saved")
    again = BackboneSpec(name=kind, folder=str(tmp_path / "saved"))
    assert tensors_digest(build_backbone(again)) == tensors_digest(build_backbone(spec))
    headed = build_masked_language_model(again, seed=2)
    assert headed.has_own_head
    with torch.inference_mode():
        torch.testing.assert_close(headed.tell(states), model.tell(states))
